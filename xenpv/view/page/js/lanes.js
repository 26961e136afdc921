// The rows of the timeline: each a sorted array of moments, and how they are drawn.

/** {id, name, depth, at, kindOf, ring, isTask, children, open}: `at` are moments. */
function buildLanes(tape) {
  const groups = [...domainLanes(tape)];
  const rings = tape.ringOrder.map((number) => tape.rings[number]).map((ring) => ({
    id: `ring${ring.number}`,
    name: tape.ringName(ring),
    depth: 1,
    at: tape.ringMoments[ring.number],
    fixed: 'PUBLISH',
    ring,
  }));
  if (rings.length) groups.push(group('rings', 'Rings: slots published', rings));
  const { requests, changes, frames } = tape;
  const store = [
    { id: 'requests', name: 'requests answered', depth: 1, at: requests.moment, fixed: 'STORE' },
    { id: 'changes', name: 'changes of nodes', depth: 1, at: changes.moment, fixed: 'CHANGE' },
  ].filter(({ at }) => at.length);
  if (store.length) groups.push(group('store', 'Store', store));
  const bridges = new Map();
  for (let i = 0; i < frames.moment.length; i++) {
    const name = tape.string(frames.bridge[i]);
    if (!bridges.has(name)) bridges.set(name, []);
    bridges.get(name).push(frames.moment[i]);
  }
  const lanes = [...bridges].map(([name, at]) => (
    { id: `bridge ${name}`, name, depth: 1, at: Int32Array.from(at), fixed: 'FRAME' }
  ));
  if (lanes.length) groups.push(group('bridges', 'Bridges: frames', lanes));
  return groups;
}

function group(id, name, children) {
  return { id, name, depth: 0, at: new Int32Array(0), children, open: true };
}

/** A lane for each domain, below it one for each of its tasks. */
function domainLanes(tape) {
  const domains = new Map();
  const tasks = new Map();
  const runs = [];
  const lanesOf = tape.codes.map(([machine, domid]) => {
    const key = `${machine}:${domid}`;
    if (!domains.has(key)) domains.set(key, { machine, domid, at: [], tasks: [] });
    return domains.get(key);
  });
  const isRun = tape.codes.map(([, , kind]) => ['DELIVER', 'TIMER'].includes(tape.kinds.get(kind).name));
  for (let moment = 0; moment < tape.count; moment++) {
    const domain = lanesOf[tape.code[moment]];
    domain.at.push(moment);
    if (!isRun[tape.code[moment]]) continue;
    runs.push(moment);
    const key = `${domain.machine}:${tape.a[moment]}`;
    if (!tasks.has(key)) {
      tasks.set(key, []);
      domain.tasks.push([key, tasks.get(key)]);
    }
    tasks.get(key).push(moment);
  }
  tape.runs = Int32Array.from(runs);
  const order = [...domains.values()].sort((a, b) => a.machine - b.machine || a.domid - b.domid);
  return order.map(({ machine, domid, at, tasks: own }) => ({
    id: `domain ${machine}:${domid}`,
    name: tape.domainName(machine, domid),
    depth: 0,
    at: Int32Array.from(at),
    open: false,
    children: own.map(([key, moments]) => ({
      id: `task ${key}`,
      name: tape.taskNames.get(key) || `task ${key.split(':')[1]}`,
      depth: 1,
      at: Int32Array.from(moments),
      fixed: 'DELIVER',
      isTask: true,
    })),
  }));
}

/** The lanes that are in sight with some groups open. */
function openLanes(lanes) {
  return lanes.flatMap((lane) => [lane, ...(lane.children && lane.open ? lane.children : [])]);
}

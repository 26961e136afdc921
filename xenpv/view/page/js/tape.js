// The recording: what document.py wrote, and what any moment looked like.
//
// A moment is an event's place in the order of all. Everything else carries the moment of the
// event that it belongs to; -1 is before the first.

const WORDS = ['req_prod', 'req_event', 'rsp_prod', 'rsp_event'];
// So that a ring's slots at a moment cost at most this many publications.
const CHECKPOINT = 64;
const U32 = 0x100000000;

class Tape {
  constructor(data) {
    this.data = data;
    this.strings = data.strings;
    this.kinds = new Map(data.kinds.map(([number, name, text]) => [number, { name, text }]));
    this._readEvents(data.events);
    this._readNames(data);
    this._readPublications(data.publications);
    this._readConsumed(data.consumed);
    this._readStore(data.requests, data.changes);
    this._readFrames(data.frames);
  }

  _readEvents(events) {
    this.count = events.count;
    this.codes = events.codes;
    this.code = column(events.code, Uint32Array);
    this.a = column(events.a, Float64Array);
    this.b = column(events.b, Float64Array);
    this.jumps = deltaColumn(events.jump, Int32Array);
    this.times = deltaColumn(events.time, Float64Array);
  }

  _readNames(data) {
    this.notes = data.notes;
    this.domainNames = new Map();
    for (const [machine, domid, name] of data.domains) {
      if (name) this.domainNames.set(`${machine}:${domid}`, name);
    }
    this.taskNames = new Map(
      data.tasks.map(([machine, , number, name]) => [`${machine}:${number}`, name]),
    );
    this.rings = data.rings.map((row, number) => {
      const [machine, domid, backDomid, kind, device, queue, size, entrySize, first, pfn] = row;
      return { number, machine, domid, backDomid, kind, device, queue, size, entrySize, first, pfn };
    });
  }

  /** Numbers of the rings as one would look for them. */
  get ringOrder() {
    const key = ({ machine, domid, device, kind, queue }) => [machine, domid, device, kind, queue];
    const compare = (a, b) => {
      const [one, other] = [key(this.rings[a]), key(this.rings[b])];
      const at = one.findIndex((part, i) => part !== other[i]);
      return at < 0 ? a - b : one[at] < other[at] ? -1 : 1;
    };
    return this.rings.map(({ number }) => number).sort(compare);
  }

  _readPublications(data) {
    const which = column(data.which, Uint32Array);
    const total = which.length;
    const signed = {};
    for (const name of WORDS) signed[name] = column(data[name], Float64Array);
    const skip = column(data.skip, Float64Array);
    const published = {
      moment: deltaColumn(data.moment, Int32Array),
      ring: which.map((value) => value >>> 1),
      isResponse: Uint8Array.from(which, (value) => value & 1),
      first: new Float64Array(total), // never wraps: an index is this modulo 2^32
      count: column(data.count, Uint32Array),
      start: new Uint32Array(total), // of its first slot among all slots
    };
    for (const name of WORDS) published[name] = new Float64Array(total);
    const last = this.rings.map(() => ({ end: [0, 0] }));
    let slots = 0;
    for (let i = 0; i < total; i++) {
      const before = last[published.ring[i]];
      const side = published.isResponse[i];
      published.first[i] = before.end[side] + skip[i];
      before.end[side] = published.first[i] + published.count[i];
      for (const name of WORDS) {
        published[name][i] = before[name] = (before[name] || 0) + unzigzag(signed[name][i]);
      }
      published.start[i] = slots;
      slots += published.count[i];
    }
    this.published = published;
    this.structs = data.structs.map(([name, fields, inUse]) => ({ name, fields, inUse }));
    this.enums = data.enums.map(([name, isFlags, names]) => ({ name, isFlags, names }));
    this.slotStruct = column(data.struct, Uint16Array);
    this._readSlots(bytesOf(data.slots));
    this.ringPublications = this.rings.map(() => []);
    for (let i = 0; i < total; i++) this.ringPublications[published.ring[i]].push(i);
    this.ringMoments = this.ringPublications.map((list) =>
      Int32Array.from(list, (i) => published.moment[i]),
    );
    this.checkpoints = this.rings.map(() => null);
  }

  _readConsumed(data) {
    const moment = deltaColumn(data.moment, Int32Array);
    const ring = column(data.ring, Uint32Array);
    const changes = { req_cons: column(data.req_cons, Float64Array), rsp_cons: column(data.rsp_cons, Float64Array) };
    this.consumed = this.rings.map(() => ({ moment: [], req_cons: [], rsp_cons: [] }));
    const last = this.rings.map(() => ({ req_cons: 0, rsp_cons: 0 }));
    for (let i = 0; i < moment.length; i++) {
      const found = this.consumed[ring[i]];
      found.moment.push(moment[i]);
      for (const name of ['req_cons', 'rsp_cons']) {
        last[ring[i]][name] += unzigzag(changes[name][i]);
        found[name].push(last[ring[i]][name]);
      }
    }
  }

  /** Undo columns.sparse: each slot is what its entry held before, with some bytes changed. */
  _readSlots(packed) {
    const { ring, first, count, start } = this.published;
    let bytes = 0;
    for (let i = 0; i < ring.length; i++) bytes += count[i] * this.rings[ring[i]].entrySize;
    this.pool = new Uint8Array(bytes);
    this.slotOffset = new Float64Array(this.slotStruct.length);
    const entries = this.rings.map(({ size, entrySize }) => new Uint8Array(size * entrySize));
    const reader = new Varints(packed);
    let end = 0;
    for (let i = 0; i < ring.length; i++) {
      const { size, entrySize } = this.rings[ring[i]];
      for (let slot = 0; slot < count[i]; slot++) {
        const place = ((first[i] + slot) % size) * entrySize;
        const entry = entries[ring[i]].subarray(place, place + entrySize);
        let at = reader.next();
        while (at < entrySize) {
          for (let left = reader.next(); left > 0; left--) entry[at++] ^= packed[reader.at++];
          if (at < entrySize) at += reader.next();
        }
        this.pool.set(entry, end);
        this.slotOffset[start[i] + slot] = end;
        end += entrySize;
      }
    }
  }

  _readStore(requests, changes) {
    this.requests = { moment: deltaColumn(requests.moment, Int32Array) };
    for (const name of ['domid', 'op', 'tx', 'payload', 'error']) {
      this.requests[name] = column(requests[name], Uint32Array);
    }
    const moment = deltaColumn(changes.moment, Int32Array);
    const path = column(changes.path, Uint32Array);
    const value = column(changes.value, Uint32Array);
    const perms = column(changes.perms, Uint32Array);
    // The change before it of the same path, so that stepping back undoes it.
    const before = new Int32Array(moment.length);
    const last = new Map();
    for (let i = 0; i < moment.length; i++) {
      before[i] = last.has(path[i]) ? last.get(path[i]) : -1;
      last.set(path[i], i);
    }
    this.changes = { moment, path, value, perms, before };
  }

  _readFrames(data) {
    const frames = {
      moment: deltaColumn(data.moment, Int32Array),
      time: deltaColumn(data.time, Float64Array),
    };
    for (const name of ['bridge', 'port', 'in', 'data', 'size', 'kept', 'summary']) {
      frames[name] = column(data[name], Uint32Array);
    }
    frames.bytes = bytesOf(data.bytes);
    frames.offset = new Float64Array(frames.kept.length);
    let end = 0;
    for (let i = 0; i < frames.kept.length; i++) {
      frames.offset[i] = end;
      end += frames.kept[i];
    }
    this.frames = frames;
  }

  /** String number `n` of the document, 0 being none. */
  string(n) {
    return n ? this.strings[n - 1] : '';
  }

  /** Virtual time in ns at a moment. */
  timeAt(moment) {
    const at = upperBound(this.jumps, moment);
    return at ? this.times[at - 1] : 0;
  }

  get endTime() {
    return this.times.length ? this.times[this.times.length - 1] : 0;
  }

  codeAt(moment) {
    const [machine, domid, kind] = this.codes[this.code[moment]];
    return { machine, domid, kind: this.kinds.get(kind).name };
  }

  domainName(machine, domid) {
    const name = this.domainNames.get(`${machine}:${domid}`);
    const id = machine ? `m${machine} d${domid}` : `d${domid}`;
    return name || !domid ? `${id} ${name || 'Domain-0'}` : id;
  }

  ringName(ring) {
    const { machine, domid, kind, device, queue, pfn } = ring;
    const where = device ? device.replace(/^device\//, '') : `pfn 0x${pfn.toString(16)}`;
    return `${machine ? `m${machine} ` : ''}d${domid} ${where} ${kind}${queue ? ` queue ${queue}` : ''}`;
  }

  /** What happened at a moment, in words, without the domain. */
  eventText(moment) {
    const [machine, , kind] = this.codes[this.code[moment]];
    const { name, text } = this.kinds.get(kind);
    const a = this.a[moment];
    const b = this.b[moment];
    if (name === 'DELIVER' || name === 'TIMER') {
      const task = this.taskNames.get(`${machine}:${a}`);
      if (task) return `${name === 'TIMER' ? 'timer of' : 'runs'} ${task} (task ${a})`;
    } else if (name === 'PUBLISH') {
      const found = this.publicationsAt(moment);
      if (found.length) return found.map((i) => this.publicationText(i)).join('; ');
    } else if (name === 'STORE') {
      const found = upperBound(this.requests.moment, moment) - 1;
      if (found >= 0 && this.requests.moment[found] === moment) return this.requestText(found);
    } else if (name === 'NOTE' && moment in this.notes) {
      return this.notes[moment];
    }
    return fill(text, a, b);
  }

  /** All that one can search for at a moment. */
  searchText(moment) {
    const { machine, domid, kind } = this.codeAt(moment);
    const parts = [this.domainName(machine, domid), kind, this.eventText(moment)];
    const { changes, frames } = this;
    let i = lowerBound(changes.moment, moment);
    for (; changes.moment[i] === moment; i++) {
      parts.push(this.string(changes.path[i]), this.string(changes.value[i]));
    }
    i = lowerBound(frames.moment, moment);
    for (; frames.moment[i] === moment; i++) parts.push(this.string(frames.summary[frames.data[i]]));
    return parts.join(' ').toLowerCase();
  }

  publicationsAt(moment) {
    const { published } = this;
    const found = [];
    let i = lowerBound(published.moment, moment);
    for (; published.moment[i] === moment; i++) found.push(i);
    return found;
  }

  publicationText(i) {
    const { ring, count } = this.published;
    const name = this.ringName(this.rings[ring[i]]);
    if (!count[i]) return `moves an index of ${name} by more than a ring`;
    const [many, which] = this._many(i);
    return `publishes ${many} on ${name} (${which})`;
  }

  /** The same where the ring is known. */
  publishedText(i) {
    return this.published.count[i] ? this._many(i).join(', ') : 'an index jumps';
  }

  _many(i) {
    const { isResponse, first, count } = this.published;
    const from = first[i] % U32;
    const last = (first[i] + count[i] - 1) % U32;
    const which = count[i] > 1 ? `indices ${from} to ${last}` : `index ${from}`;
    return [plural(count[i], isResponse[i] ? 'response' : 'request'), which];
  }

  changeText(i) {
    const { path, value } = this.changes;
    const name = this.string(path[i]);
    return value[i] ? `${name} = ${this.string(value[i]) || '(empty)'}` : `${name} removed`;
  }

  /** The frames of a moment: how many, and the first in words. */
  frameText(moment) {
    const { frames } = this;
    const first = lowerBound(frames.moment, moment);
    const count = upperBound(frames.moment, moment) - first;
    const text = this.string(frames.summary[frames.data[first]]);
    return count > 1 ? `${count} frames: ${text}` : text;
  }

  requestText(i) {
    const { op, tx, payload, error } = this.requests;
    const name = this.data.ops[op[i]] || `type ${op[i]}`;
    const said = this.string(payload[i]);
    const within = tx[i] ? ` in transaction ${tx[i]}` : '';
    return `store: ${name}${said ? ` ${said}` : ''}${within}${error[i] ? ` fails: ${this.string(error[i])}` : ''}`;
  }

  /** A ring as its memory was at a moment; null before its first publication.
   *
   * `request` and `response` are, for each slot, the last one published there (a number among
   * all slots) or -1, with the index of each, which never wraps here.
   */
  ringAt(number, moment) {
    const upTo = upperBound(this.ringMoments[number], moment);
    if (!upTo) return null;
    if (!this.checkpoints[number]) this.checkpoints[number] = this._checkpointsOf(number);
    const state = copySlots(this.checkpoints[number][Math.floor((upTo - 1) / CHECKPOINT)]);
    const list = this.ringPublications[number];
    for (let i = Math.floor((upTo - 1) / CHECKPOINT) * CHECKPOINT; i < upTo; i++) {
      this._publish(state, list[i]);
    }
    const last = list[upTo - 1];
    for (const name of WORDS) state[name] = this.published[name][last];
    const consumed = this.consumed[number];
    const at = upperBound(consumed.moment, moment) - 1;
    state.req_cons = at < 0 ? -1 : consumed.req_cons[at];
    state.rsp_cons = at < 0 ? -1 : consumed.rsp_cons[at];
    state.publication = last;
    state.publications = upTo;
    return state;
  }

  /** How far a slot has come: the words of xenpv.view.slots.Slot. */
  slotState(number, state, slot) {
    const { size } = this.rings[number];
    const request = state.requestIndex[slot];
    const response = state.responseIndex[slot];
    const isLeft = (index, cons) => cons >= 0 && ((index - cons) % U32 + U32) % U32 < size;
    if (response >= 0 && response >= request) {
      return isLeft(response, state.rsp_cons) ? 'answered' : 'done';
    }
    if (request >= 0) return isLeft(request, state.req_cons) ? 'unconsumed' : 'in flight';
    return 'empty';
  }

  /** Only the words: (requests without an answer) of a ring at its publication `i`. */
  inFlight(i) {
    return (this.published.req_prod[i] - this.published.rsp_prod[i]) >>> 0;
  }

  _publish(state, i) {
    const { ring, isResponse, first, count, start } = this.published;
    const { size } = this.rings[ring[i]];
    const side = isResponse[i] ? state.response : state.request;
    const index = isResponse[i] ? state.responseIndex : state.requestIndex;
    // Of more slots than there are, the last ones are in memory.
    for (let slot = Math.max(0, count[i] - size); slot < count[i]; slot++) {
      const at = first[i] + slot;
      side[at % size] = start[i] + slot;
      index[at % size] = at;
    }
  }

  _checkpointsOf(number) {
    const { size } = this.rings[number];
    const state = {
      request: new Int32Array(size).fill(-1),
      response: new Int32Array(size).fill(-1),
      requestIndex: new Float64Array(size).fill(-1),
      responseIndex: new Float64Array(size).fill(-1),
    };
    const found = [];
    this.ringPublications[number].forEach((i, at) => {
      if (at % CHECKPOINT === 0) found.push(copySlots(state));
      this._publish(state, i);
    });
    return found;
  }

  /** Bytes of slot number `slot` among all. */
  slotBytes(slot, entrySize) {
    return this.pool.subarray(this.slotOffset[slot], this.slotOffset[slot] + entrySize);
  }

  /** [name, text, value] of each field of a slot that is in use. */
  slotFields(slot, entrySize) {
    const { fields, inUse } = this.structs[this.slotStruct[slot]];
    const bytes = this.slotBytes(slot, entrySize);
    const found = [];
    let limit = Infinity;
    for (const [name, offset, size, signed, enumeration] of fields) {
      const value = scalar(bytes, offset, size, signed);
      if (inUse.length && name === inUse[1]) limit = Math.ceil(Number(value) / inUse[2]);
      const element = inUse.length && name.startsWith(`${inUse[0]}[`)
        ? Number.parseInt(name.slice(inUse[0].length + 1), 10)
        : -1;
      if (element < limit) {
        found.push([name, inWords(value, name, this.enums[enumeration]), value]);
      }
    }
    return found;
  }

  structName(slot) {
    return this.structs[this.slotStruct[slot]].name;
  }
}

function copySlots({ request, response, requestIndex, responseIndex }) {
  return {
    request: request.slice(),
    response: response.slice(),
    requestIndex: requestIndex.slice(),
    responseIndex: responseIndex.slice(),
  };
}

/** Python's format fields of xen.trace.EVENTS. */
function fill(text, a, b) {
  return text.replace(/\{([ab])(?::([^}]*))?\}/g, (_, operand, format) => {
    const value = operand === 'a' ? a : b;
    if (format === '#x') return `0x${value.toString(16)}`;
    if (format === '08x') return value.toString(16).padStart(8, '0');
    return String(value);
  });
}

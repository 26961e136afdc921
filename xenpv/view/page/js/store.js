// The store at the chosen moment as a tree, and the list of its changes.

class StorePanel {
  constructor(tape, cursor) {
    this.tape = tape;
    this.cursor = cursor;
    this.applied = 0; // changes that `current` has
    this.shownApplied = 0;
    this.paths = new Map(); // path: node
    this.order = this._nodes();
    this.closed = new Set();
    this.dirty = true;
    this.rows = [];
    this.filter = byId('store-filter');
    this.filter.addEventListener('input', () => { this.dirty = true; this.show(); });
    this.only = byId('changes-only');
    this.only.addEventListener('change', () => this._listChanges());
    this.tree = new VirtualList(byId('store'), {
      role: 'tree',
      rowRole: 'treeitem',
      row: (i) => this._row(this.rows[i]),
      rowClass: (i) => this._class(this.rows[i]),
      rowAttributes: (i) => ({
        'aria-level': this.rows[i].depth + 1,
        'aria-expanded': this.rows[i].children.length ? String(!this.closed.has(this.rows[i])) : undefined,
        title: this.rows[i].path,
      }),
      move: () => this._listChanges(),
      choose: (i) => this._toggle(i),
    });
    this.changes = new VirtualList(byId('changes'), {
      row: (i) => this._changeRow(this.listed[i]),
      rowClass: (i) => this._changeClass(this.listed[i]),
      choose: (i) => cursor.set(tape.changes.moment[this.listed[i]]),
    });
    this.listed = [];
    this._listChanges();
  }

  /** A node for each path that ever was, and for what lies above it, in the order of the tree. */
  _nodes() {
    const { path } = this.tape.changes;
    const root = { path: '/', name: '/', depth: 0, children: [], parent: null, current: -1 };
    this.paths.set('/', root);
    const nodeOf = (text) => {
      let node = this.paths.get(text);
      if (node) return node;
      const cut = text.lastIndexOf('/');
      const parent = nodeOf(cut > 0 ? text.slice(0, cut) : '/');
      node = { path: text, name: text.slice(cut + 1), depth: parent.depth + 1, children: [], parent, current: -1 };
      parent.children.push(node);
      this.paths.set(text, node);
      return node;
    };
    this.nodeOfChange = Array.from(path, (id) => nodeOf(this.tape.string(id)));
    const compare = (a, b) => (a.name === b.name ? 0 : natural(a.name, b.name));
    const ordered = [];
    const visit = [root];
    while (visit.length) {
      const node = visit.pop();
      ordered.push(node);
      node.children.sort(compare);
      for (let i = node.children.length - 1; i >= 0; i--) visit.push(node.children[i]);
    }
    return ordered;
  }

  /** Go to the chosen moment, by the changes between there and where `current` is. */
  _apply() {
    const { changes } = this.tape;
    const target = upperBound(changes.moment, this.cursor.at);
    const set = (i, current) => {
      const node = this.nodeOfChange[i];
      if (this._has(node) !== (current >= 0 && changes.value[current] > 0)) this.dirty = true;
      node.current = current;
    };
    while (this.applied < target) set(this.applied, this.applied++);
    while (this.applied > target) set(this.applied - 1, changes.before[--this.applied]);
  }

  _has(node) {
    return node.current >= 0 && this.tape.changes.value[node.current] > 0;
  }

  value(node) {
    return this._has(node) ? this.tape.string(this.tape.changes.value[node.current]) : '';
  }

  show() {
    this._apply();
    if (this.dirty) this._build();
    this.dirty = false;
    if (this.applied !== this.shownApplied && this.applied) {
      const row = this.rows.indexOf(this.nodeOfChange[this.applied - 1]);
      if (row >= 0) this.tree.reveal(row);
    }
    this.shownApplied = this.applied;
    this.tree.draw();
    this._last();
    this.changes.setActive(upperBound(this.listedMoments, this.cursor.at) - 1);
  }

  /** The rows: nodes that are there, open and let through by the filter. */
  _build() {
    const words = this.filter.value.toLowerCase();
    const wanted = new Set();
    const isMatch = (node) => node.path.toLowerCase().includes(words) || this.value(node).toLowerCase().includes(words);
    // A node that only stands above others is there as long as one of those is.
    for (let i = this.order.length - 1; i >= 0; i--) {
      const node = this.order[i];
      if (wanted.has(node) || (this._has(node) && isMatch(node))) {
        wanted.add(node);
        if (node.parent) wanted.add(node.parent);
      }
    }
    const isHidden = (node) => {
      for (let above = node.parent; above; above = above.parent) if (this.closed.has(above)) return true;
      return false;
    };
    this.rows = this.order.filter((node) => wanted.has(node) && (words || !isHidden(node)));
    this.tree.setCount(this.rows.length);
    const nodes = this.order.reduce((sum, node) => sum + (this._has(node) ? 1 : 0), 0);
    byId('store-count').textContent = words
      ? `${plural(this.rows.length, 'row')} of ${plural(nodes, 'node')}`
      : plural(nodes, 'node');
  }

  _row(node) {
    const { changes } = this.tape;
    const mark = node.children.length ? (this.closed.has(node) ? '▸' : '▾') : '';
    const name = h('span', { class: 'name' }, h('span', { class: 'mark', 'aria-hidden': true }, mark), node.name);
    name.style.paddingLeft = `${node.depth * 14}px`;
    const value = this.value(node);
    return [
      name,
      h('span', { class: 'text' }, value ? `= ${value}` : '', stateWord(node.name, value)),
      h('span', { class: 'perms' }, this._has(node) ? this.tape.string(changes.perms[node.current]) : ''),
    ];
  }

  _class(node) {
    if (node.current < 0) return '';
    const at = this.tape.changes.moment[node.current];
    if (at === this.cursor.at) return 'changed';
    return node.current === this.applied - 1 ? 'latest' : '';
  }

  _toggle(i) {
    const node = this.rows[i];
    if (node.children.length) {
      if (!this.closed.delete(node)) this.closed.add(node);
      this._build();
    }
    this.tree.draw();
    this._listChanges();
  }

  _last() {
    const { changes } = this.tape;
    const i = this.applied - 1;
    byId('store-last').textContent = i < 0
      ? 'Nothing has been written yet.'
      : `Last change, event ${grouped(Math.max(0, changes.moment[i]))}: ${this.tape.changeText(i)}`;
  }

  _listChanges() {
    const node = this.rows[this.tree.active];
    const all = Array.from(this.nodeOfChange.keys());
    const isBelow = (one) => one === node || one.path.startsWith(node.path === '/' ? '/' : `${node.path}/`);
    this.listed = this.only.checked && node ? all.filter((i) => isBelow(this.nodeOfChange[i])) : all;
    this.changes.setCount(this.listed.length);
    byId('changes-count').textContent = plural(this.listed.length, 'change');
    this.listedMoments = this.listed.map((i) => this.tape.changes.moment[i]);
    this.changes.setActive(upperBound(this.listedMoments, this.cursor.at) - 1);
  }

  _changeRow(i) {
    const text = this.tape.changeText(i);
    return [
      h('span', { class: 'number' }, grouped(Math.max(0, this.tape.changes.moment[i]))),
      h('span', { class: 'text', title: text }, text),
    ];
  }

  _changeClass(i) {
    const at = this.tape.changes.moment[i];
    if (at === this.cursor.at) return 'changed';
    return at > this.cursor.at ? 'later' : '';
  }
}

/** Numbers by value, so that domain 10 comes behind domain 2. */
function natural(a, b) {
  const isNumber = /^\d{1,15}$/;
  if (isNumber.test(a) && isNumber.test(b)) return Number(a) - Number(b);
  return a < b ? -1 : 1;
}

// enum xenbus_state, io/xenbus.h.
const XENBUS_STATES = [
  'Unknown', 'Initialising', 'InitWait', 'Initialised', 'Connected', 'Closing', 'Closed',
  'Reconfiguring', 'Reconfigured',
];

/** What a node called `state` says, in words. */
function stateWord(name, value) {
  if (name !== 'state' || !/^[0-8]$/.test(value)) return '';
  return h('span', { class: 'stateword' }, ` ${XENBUS_STATES[Number(value)]}`);
}

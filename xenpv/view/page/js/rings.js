// Every ring's slots at the chosen moment: a map of each, and one ring in full.

const STATES = {
  empty: 'nothing was published here yet',
  unconsumed: 'a request that the backend has not taken',
  'in flight': 'a request that the backend has taken, or may have, without a response',
  answered: 'a response that the frontend has not taken',
  done: 'a response that the frontend has taken, or may have',
};
const MAP_COLUMNS = 64;

class RingsPanel {
  constructor(tape, cursor, palette) {
    this.tape = tape;
    this.cursor = cursor;
    this.palette = palette;
    this.order = tape.ringOrder; // ring numbers by row of the list
    this.chosen = this.order[0] || 0;
    this.lastAt = -1;
    this.states = tape.rings.map(() => null);
    this.slot = 0;
    this.slots = [];
    this.follow = byId('ring-follow');
    this.busy = byId('ring-busy');
    this.busy.addEventListener('change', () => this.show());
    this.list = new VirtualList(byId('rings'), {
      height: 30,
      row: (i) => this._ringRow(this.order[i]),
      rowClass: (i) => (this._changedNow(this.order[i]).length ? 'changed' : ''),
      move: (i) => this._choose(this.order[i]),
      choose: (i) => this._choose(this.order[i]),
    });
    this.list.setCount(tape.rings.length);
    this.table = new VirtualList(byId('slots'), {
      row: (i) => this._slotRow(this.slots[i]),
      rowClass: (i) => (this._isChanged(this.slots[i]) ? 'changed' : ''),
      move: (i) => this._chooseSlot(this.slots[i]),
      choose: (i) => this._chooseSlot(this.slots[i]),
    });
    new ResizeObserver(() => this._reveal()).observe(this.table.root);
  }

  _choose(ring) {
    this.chosen = ring;
    this.slot = 0;
    this.show();
  }

  _chooseSlot(slot) {
    this.slot = slot;
    this._detail();
  }

  /** Publications on a ring at the chosen moment. */
  _changedNow(ring) {
    return this.tape.publicationsAt(this.cursor.at).filter((i) => this.tape.published.ring[i] === ring);
  }

  show() {
    const { tape, cursor } = this;
    if (!tape.rings.length) return;
    if (cursor.at !== this.lastAt) {
      const now = tape.publicationsAt(cursor.at);
      if (now.length && this.follow.checked) this.chosen = tape.published.ring[now[0]];
      this.states.fill(null);
    }
    this.list.active = this.order.indexOf(this.chosen);
    if (cursor.at !== this.lastAt) this.list.reveal(this.list.active);
    this.list.draw();
    this._header();
    const state = this._state(this.chosen);
    const { size } = tape.rings[this.chosen];
    const isShown = (slot) => !this.busy.checked || this._isChanged(slot)
      || !['empty', 'done'].includes(tape.slotState(this.chosen, state, slot));
    this.slots = state ? [...Array(size).keys()].filter(isShown) : [];
    const changed = this.slots.findIndex((slot) => this._isChanged(slot));
    if (changed >= 0 && cursor.at !== this.lastAt) this.slot = this.slots[changed];
    this.table.setCount(this.slots.length);
    this.table.active = this.slots.indexOf(this.slot);
    this.lastAt = cursor.at;
    this._reveal();
    this._detail();
  }

  _reveal() {
    if (this.table.active >= 0) this.table.reveal(this.table.active);
    this.table.draw();
  }

  _state(ring) {
    if (!this.states[ring]) this.states[ring] = this.tape.ringAt(ring, this.cursor.at);
    return this.states[ring];
  }

  _isChanged(slot) {
    const state = this._state(this.chosen);
    if (!state) return false;
    const { size } = this.tape.rings[this.chosen];
    const { first, count } = this.tape.published;
    return this._changedNow(this.chosen).some((i) => ((slot - first[i]) % size + size) % size < count[i]);
  }

  _ringRow(i) {
    const ring = this.tape.rings[i];
    const state = this._state(i);
    const open = state ? (state.req_prod - state.rsp_prod) >>> 0 : 0;
    // Requests of netif_rx are empty buffers: they wait for frames.
    const word = ring.kind === 'netif_rx' ? 'posted' : 'unanswered';
    const said = state ? `${grouped(open)} of ${ring.size} ${word}` : 'not yet there';
    const canvas = h('canvas', { class: 'slotmap', 'aria-hidden': true, width: 128, height: 16 });
    if (state) this._map(canvas, i, state);
    return [h('span', { class: 'text', title: this.tape.ringName(ring) }, this.tape.ringName(ring)), canvas, h('span', { class: 'open' }, said)];
  }

  /** A cell for each slot, in its state's colour. */
  _map(canvas, number, state) {
    const { size } = this.tape.rings[number];
    const columns = Math.min(size, MAP_COLUMNS);
    const rows = Math.ceil(size / columns);
    const wide = canvas.width / columns;
    const tall = canvas.height / rows;
    const context = canvas.getContext('2d');
    for (let slot = 0; slot < size; slot++) {
      context.fillStyle = this.palette.slot[this.tape.slotState(number, state, slot)];
      const gap = wide > 3 ? 1 : 0;
      context.fillRect((slot % columns) * wide, Math.floor(slot / columns) * tall, wide - gap, tall - (tall > 3 ? 1 : 0));
    }
  }

  /** Indices of both ends, those that changed with this event marked. */
  _header() {
    const { tape, cursor } = this;
    const ring = tape.rings[this.chosen];
    const state = this._state(this.chosen);
    const before = cursor.at > 0 ? tape.ringAt(this.chosen, cursor.at - 1) : null;
    byId('ring-title').textContent = tape.ringName(ring);
    const back = tape.domainName(ring.machine, ring.backDomid);
    byId('ring-about').textContent = `${ring.size} slots of ${ring.entrySize} bytes, frontend `
      + `${tape.domainName(ring.machine, ring.domid)} (page at pfn 0x${ring.pfn.toString(16)}), backend ${back}`;
    const cells = [...WORDS, 'req_cons', 'rsp_cons'].map((name) => {
      const value = state ? state[name] : -1;
      const isNew = state && (!before || before[name] !== value);
      return h('div', { class: isNew ? 'changed' : '' }, h('dt', {}, name), h('dd', {}, value < 0 ? '–' : grouped(value)));
    });
    byId('ring-words').replaceChildren(...cells);
    byId('slots-empty').hidden = Boolean(state);
  }

  _slotRow(slot) {
    const { tape, chosen } = this;
    const state = this._state(chosen);
    const how = tape.slotState(chosen, state, slot);
    const id = this._content(slot);
    const index = how === 'empty' ? '' : grouped(this._index(slot, how) % U32);
    const fields = id < 0 ? '' : this._fields(id).map(([name, text]) => `${name} ${text}`).join(', ');
    return [
      h('span', { class: 'number' }, String(slot)),
      h('span', { class: 'state' }, h('span', { class: `swatch slot-${how.replace(' ', '-')}`, 'aria-hidden': true }), how),
      h('span', { class: 'index' }, index),
      h('span', { class: 'text', title: fields }, fields),
    ];
  }

  _fields(id) {
    return this.tape.slotFields(id, this.tape.rings[this.chosen].entrySize);
  }

  _isResponse(how) {
    return how === 'answered' || how === 'done';
  }

  _index(slot, how) {
    const state = this._state(this.chosen);
    return this._isResponse(how) ? state.responseIndex[slot] : state.requestIndex[slot];
  }

  /** What memory has there: the number of a published slot, -1 for nothing. */
  _content(slot) {
    const state = this._state(this.chosen);
    const how = this.tape.slotState(this.chosen, state, slot);
    return this._isResponse(how) ? state.response[slot] : state.request[slot];
  }

  _detail() {
    const { tape, chosen, slot } = this;
    const state = this._state(chosen);
    const root = byId('slot-detail');
    if (!state || slot >= tape.rings[chosen].size) {
      root.replaceChildren();
      return;
    }
    const how = tape.slotState(chosen, state, slot);
    const parts = [h('h4', {}, `Slot ${slot}: ${how}`), h('p', { class: 'about' }, STATES[how])];
    const shown = [['request', state.request[slot]]];
    // A response takes its request's place; without one the old response is of an earlier turn.
    if (this._isResponse(how)) shown.unshift(['response', state.response[slot]]);
    for (const [side, id] of shown) if (id >= 0) parts.push(this._struct(side, id, this._isResponse(how)));
    root.replaceChildren(...parts);
  }

  _struct(side, id, isAnswered) {
    const { tape, chosen } = this;
    const name = tape.structName(id);
    const rows = fieldRows(this._fields(id)).map(([field, text]) => (
      h('tr', {}, h('th', { scope: 'row' }, field), h('td', {}, text))
    ));
    const title = side === 'request' && isAnswered ? `${name}, which it answered` : name;
    const bytes = tape.slotBytes(id, tape.rings[chosen].entrySize);
    return h('section', {}, h('h5', {}, title), h('table', {}, h('tbody', {}, ...rows)),
      h('details', {}, h('summary', {}, `${bytes.length} bytes`), h('pre', {}, hexDump(bytes))));
  }
}

/** [name, text] of a struct's fields; those of one array element, `seg[0].gref`, in one row. */
function fieldRows(fields) {
  const rows = [];
  for (const [name, text, value] of fields) {
    const number = String(value);
    const said = number === text ? text : `${text} (${number})`;
    const [, element, member] = name.match(/^(.*\])\.(.*)$/) || [];
    const last = rows[rows.length - 1];
    if (!element) rows.push([name, said]);
    else if (last && last[0] === element) last[1] += `, ${member} ${said}`;
    else rows.push([element, `${member} ${said}`]);
  }
  return rows;
}

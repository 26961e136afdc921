// Frames that crossed the bridges.

class PacketsPanel {
  constructor(tape, cursor) {
    this.tape = tape;
    this.cursor = cursor;
    this.chosen = -1;
    this.lastAt = -1;
    this.listed = [];
    this.filter = byId('packet-filter');
    this.filter.addEventListener('input', () => this._select());
    this.list = new VirtualList(byId('packets'), {
      row: (i) => this._row(this.listed[i]),
      rowClass: (i) => this._class(this.listed[i]),
      move: (i) => this._choose(i),
      choose: (i) => {
        this._choose(i);
        cursor.set(tape.frames.moment[this.listed[i]]);
      },
    });
    this._select();
  }

  _words(i) {
    const { frames } = this.tape;
    const parts = [frames.bridge[i], frames.port[i], frames.summary[frames.data[i]]];
    return parts.map((n) => this.tape.string(n)).join(' ').toLowerCase();
  }

  _select() {
    const words = this.filter.value.toLowerCase();
    const all = Array.from(this.tape.frames.moment.keys());
    this.listed = words ? all.filter((i) => this._words(i).includes(words)) : all;
    this.moments = this.listed.map((i) => this.tape.frames.moment[i]);
    this.list.setCount(this.listed.length);
    byId('packets-count').textContent = plural(this.listed.length, 'frame');
    this.lastAt = -1;
    this.show();
  }

  show() {
    if (this.cursor.at !== this.lastAt) {
      const isHere = this.chosen >= 0 && this.tape.frames.moment[this.listed[this.list.active]] === this.cursor.at;
      if (!isHere) this._choose(upperBound(this.moments, this.cursor.at) - 1);
    }
    this.lastAt = this.cursor.at;
    this.list.setActive(this.list.active);
  }

  _choose(row) {
    this.list.active = row;
    this.chosen = row < 0 ? -1 : this.listed[row];
    this._detail();
  }

  _row(i) {
    const { frames } = this.tape;
    const isIn = frames.in[i];
    return [
      h('span', { class: 'number' }, grouped(Math.max(0, frames.moment[i]))),
      h('span', { class: 'bridge' }, this.tape.string(frames.bridge[i])),
      h('span', { class: 'direction' }, isIn ? 'in from' : 'out to'),
      h('span', { class: 'port' }, this.tape.string(frames.port[i])),
      h('span', { class: 'size' }, grouped(frames.size[frames.data[i]])),
      h('span', { class: 'text', title: this.tape.string(frames.summary[frames.data[i]]) },
        this.tape.string(frames.summary[frames.data[i]])),
    ];
  }

  _class(i) {
    const at = this.tape.frames.moment[i];
    if (at === this.cursor.at) return 'changed';
    return at > this.cursor.at ? 'later' : '';
  }

  _detail() {
    const { frames } = this.tape;
    const root = byId('packet-detail');
    if (this.chosen < 0) {
      root.replaceChildren(h('p', { class: 'about' }, 'No frame has crossed a bridge yet.'));
      return;
    }
    const i = this.chosen;
    const data = frames.data[i];
    const size = frames.size[data];
    const bytes = frames.bytes.subarray(frames.offset[data], frames.offset[data] + frames.kept[data]);
    const cut = frames.kept[data] < size ? `; the first ${grouped(frames.kept[data])} are shown, --pcap keeps all` : '';
    const where = `${frames.in[i] ? 'in from' : 'out to'} ${this.tape.string(frames.port[i])}`;
    root.replaceChildren(
      h('h4', {}, this.tape.string(frames.summary[data])),
      h('p', { class: 'about' }, `${this.tape.string(frames.bridge[i])}, ${where}, at ${seconds(frames.time[i])}, ${plural(size, 'byte')} without FCS${cut}`),
      h('pre', { tabindex: '0', 'aria-label': 'bytes of the frame' }, hexDump(bytes)),
    );
  }
}

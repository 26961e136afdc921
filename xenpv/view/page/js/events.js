// All events in their order; the chosen one is the active row.

class EventsPanel {
  constructor(tape, cursor) {
    this.tape = tape;
    this.cursor = cursor;
    this.list = new VirtualList(byId('events'), {
      row: (i) => this._row(i),
      rowClass: (i) => this._class(i),
      move: (i) => cursor.set(i),
      choose: (i) => cursor.set(i),
    });
    this.list.setCount(tape.count);
  }

  _row(i) {
    const { machine, domid, kind } = this.tape.codeAt(i);
    const text = this.tape.eventText(i);
    const jumped = i > 0 ? this.tape.timeAt(i) - this.tape.timeAt(i - 1) : 0;
    return [
      h('span', { class: 'number' }, grouped(i)),
      h('span', { class: `swatch kind-${kind}`, 'aria-hidden': true }),
      h('span', { class: 'domain' }, this.tape.domainName(machine, domid)),
      h('span', { class: 'text', title: text }, text),
      h('span', { class: 'jump' }, jumped ? `+${duration(jumped)}` : ''),
    ];
  }

  _class(i) {
    const { lane } = this.cursor;
    if (!lane) return '';
    const at = lowerBound(lane.at, i);
    return lane.at[at] === i ? 'inlane' : '';
  }

  show() {
    this.list.setActive(this.cursor.at);
  }
}

/** The bar that says which moment is chosen, and moves it. */
class MomentBar {
  constructor(tape, cursor) {
    this.tape = tape;
    this.cursor = cursor;
    const click = (id, act) => byId(id).addEventListener('click', act);
    click('first', () => cursor.set(0));
    click('back', () => cursor.step(-1));
    click('forward', () => cursor.step(1));
    click('last', () => cursor.set(tape.count - 1));
    this.field = byId('moment-number');
    this.field.max = String(tape.count - 1);
    this.field.addEventListener('change', () => {
      cursor.set(Number(this.field.value) || 0);
      this.field.value = String(cursor.at);
    });
  }

  show() {
    const { tape, cursor } = this;
    if (!tape.count) {
      byId('moment-text').textContent = 'Nothing was recorded.';
      return;
    }
    const { machine, domid, kind } = tape.codeAt(cursor.at);
    this.field.value = String(cursor.at);
    byId('moment-time').textContent = seconds(tape.timeAt(cursor.at));
    byId('moment-swatch').className = `swatch kind-${kind}`;
    byId('moment-domain').textContent = tape.domainName(machine, domid);
    byId('moment-text').textContent = tape.eventText(cursor.at);
  }
}

// The timeline: lanes over the order of events. Only what is in sight is drawn, and of many
// events in one column of pixels one bar: work is bounded by the screen, not by the tape.

const LANE = 24; // pixels
const RULER = 54;
const COLUMN = 2; // pixels of a bar when events are closer than that
const SAMPLES = 8; // of the events in one column, to find the loudest
const SPAN_MIN = 8; // events

class Timeline {
  constructor(tape, cursor, palette) {
    this.tape = tape;
    this.cursor = cursor;
    this.palette = palette;
    this.lanes = buildLanes(tape);
    this.shown = openLanes(this.lanes);
    this.canvas = byId('timeline-canvas');
    this.view = { from: 0, span: Math.max(SPAN_MIN, tape.count) };
    this.lastAt = -1;
    // For tests: primitives drawn and array elements looked at by the last draw.
    this.drawn = 0;
    this.visited = 0;
    this.list = new VirtualList(byId('lanes'), {
      height: LANE,
      role: 'tree',
      rowRole: 'treeitem',
      row: (i) => this._label(this.shown[i]),
      rowClass: (i) => `lane depth${this.shown[i].depth}${this.shown[i] === cursor.lane ? ' chosen' : ''}`,
      rowAttributes: (i) => this._laneAttributes(this.shown[i]),
      move: (i) => cursor.choose(this.shown[i]),
      choose: (i, event) => this._chooseLane(i, event),
    });
    this.list.root.addEventListener('scroll', () => this.draw());
    this._setRows();
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    new Pointer(this);
  }

  _label(lane) {
    const mark = lane.children ? (lane.open ? '▾' : '▸') : '';
    const count = lane.at.length ? grouped(lane.at.length) : '';
    return [
      h('span', { class: 'mark', 'aria-hidden': true }, mark),
      h('span', { class: 'name' }, lane.name),
      h('span', { class: 'count' }, count),
    ];
  }

  _laneAttributes(lane) {
    return {
      'aria-level': lane.depth + 1,
      'aria-expanded': lane.children ? String(lane.open) : undefined,
      'aria-selected': String(lane === this.cursor.lane),
      title: lane.name,
    };
  }

  _chooseLane(i, event) {
    const lane = this.shown[i];
    // A key opens and closes; so does a click on the mark, or on the name of a mere heading.
    const isKey = event.type === 'keydown';
    const isMark = event.target.closest && event.target.closest('.mark');
    if (lane.children && (isKey || isMark || !lane.at.length)) {
      lane.open = !lane.open;
      this.shown = openLanes(this.lanes);
      this._setRows();
    }
    this.cursor.choose(lane.at.length ? lane : null);
  }

  /** As tall as its rows need, within limits; the rest scrolls. */
  _setRows() {
    const rows = Math.max(6, Math.min(20, this.shown.length));
    byId('lanes').parentElement.style.height = `${RULER + rows * LANE + 4}px`;
    this.list.setCount(this.shown.length);
  }

  // where things are

  x(moment, width = this.width) {
    return ((moment - this.view.from) * width) / this.view.span;
  }

  momentAt(x) {
    return this.view.from + (x * this.view.span) / this.width;
  }

  /** Zoom about a moment: a factor below 1 comes nearer. */
  zoom(factor, about = this.cursor.at + 0.5) {
    const most = Math.max(SPAN_MIN, this.tape.count);
    const span = Math.max(SPAN_MIN, Math.min(most, this.view.span * factor));
    const place = Math.max(0, Math.min(1, (about - this.view.from) / this.view.span));
    this.look(about - place * span, span);
  }

  pan(moments) {
    this.look(this.view.from + moments, this.view.span);
  }

  look(from, span) {
    const most = Math.max(0, this.tape.count - span);
    this.view = { from: Math.max(0, Math.min(most, from)), span };
    this.cursor.redraw();
  }

  whole() {
    this.look(0, Math.max(SPAN_MIN, this.tape.count));
  }

  show() {
    const { at } = this.cursor;
    if (at !== this.lastAt) {
      const { from, span } = this.view;
      if (at < from || at >= from + span) this.look(at + 0.5 - span / 2, span);
      this.lastAt = at;
    }
    this.list.draw();
    this.draw();
  }

  draw() {
    const { context, width, height } = fit(this.canvas);
    this.width = width;
    this.drawn = 0;
    this.visited = 0;
    this.context = context;
    if (!this.tape.count) return;
    this._idle(width, height);
    this._ruler(width);
    const { scrollTop } = this.list.root;
    context.save();
    context.beginPath();
    context.rect(0, RULER, width, height - RULER);
    context.clip();
    const first = Math.floor(scrollTop / LANE);
    for (let row = first; row < this.shown.length; row++) {
      const top = RULER + row * LANE - scrollTop;
      if (top >= height) break;
      this._lane(this.shown[row], top, width);
    }
    context.restore();
    this._cursor(height);
    this._describe();
  }

  _rect(colour, x, y, width, height) {
    this.context.fillStyle = colour;
    this.context.fillRect(x, y, width, height);
    this.drawn++;
  }

  _text(text, x, y, colour, width) {
    this.context.fillStyle = colour;
    this.context.fillText(text, x, y, width);
    this.drawn++;
  }

  /** Numbers of events, and below them what the virtual clock said. */
  _ruler(width) {
    const { context, palette, view } = this;
    const step = niceStep((view.span * 130) / width);
    context.font = palette.font;
    context.textBaseline = 'middle';
    const last = Math.min(view.from + view.span, this.tape.count);
    let said = -1;
    for (let at = Math.ceil(view.from / step) * step; at < last; at += step) {
      const x = this.x(at, width);
      this._rect(palette.line, x, 0, 1, RULER - 18);
      if (width - x < 70) continue;
      this._text(grouped(at), x + 4, 9, palette.ink);
      const time = this.tape.timeAt(at);
      if (time !== said) this._text(seconds(time), x + 4, 25, palette.dim);
      said = time;
    }
    this._rect(palette.line, 0, RULER - 1, width, 1);
  }

  /** Where virtual time passed: a band for each column of pixels that has some, the longest
   * ones with how long. Within it nothing happened: the events before and after are neighbours.
   */
  _idle(width, height) {
    const { palette, view, tape, context } = this;
    context.font = palette.font;
    context.textBaseline = 'middle';
    const firstJump = Math.max(1, lowerBound(tape.jumps, Math.ceil(view.from)));
    const end = view.from + view.span;
    const total = tape.timeAt(Math.min(end, tape.count - 1)) - tape.timeAt(view.from);
    let free = -Infinity;
    let i = firstJump;
    while (i < tape.jumps.length && tape.jumps[i] <= end) {
      this.visited++;
      const x = Math.floor(this.x(tape.jumps[i], width) / COLUMN) * COLUMN;
      const next = upperBound(tape.jumps, this.momentAt(x + COLUMN) - 1e-9, i);
      const after = Math.max(next, i + 1);
      const passed = tape.times[after - 1] - tape.times[i - 1];
      const isLong = passed * 50 >= total;
      this._rect(palette.idle, x, RULER - (isLong ? 18 : 7), COLUMN, isLong ? height : 6);
      const label = `+${duration(passed)}`;
      if (isLong && x > free) {
        this._text(label, x + 5, RULER - 9, palette.ink);
        free = x + 12 + context.measureText(label).width;
      }
      i = after;
    }
  }

  _lane(lane, top, width) {
    const { palette } = this;
    this._rect(palette.line, 0, top + LANE - 1, width, 1);
    if (lane === this.cursor.lane) this._rect(palette.chosen, 0, top, width, LANE - 1);
    if (!lane.at.length) return;
    if (lane.ring) this._fill(lane, top, width);
    const pixels = width / this.view.span;
    if (pixels >= COLUMN) this._single(lane, top, pixels);
    else this._bucketed(lane, top, width);
  }

  /** Each event of its own: with room, in words. */
  _single(lane, top, pixels) {
    const { view, context, palette, tape } = this;
    const end = view.from + view.span;
    let before = -1;
    for (let i = lowerBound(lane.at, Math.floor(view.from)); i < lane.at.length; i++) {
      const moment = lane.at[i];
      if (moment > end) break;
      this.visited++;
      if (moment === before) continue; // several frames, or nodes, of one event
      before = moment;
      const x = this.x(moment);
      const until = lane.isTask ? this._runEnd(moment) : moment + 1;
      const wide = Math.max(COLUMN, (until - moment) * pixels - (pixels > 4 ? 1 : 0));
      const colour = palette.kind[lane.fixed || tape.codeAt(moment).kind];
      if (pixels < 70) {
        this._rect(colour, x, top + 5, wide, LANE - 10);
        continue;
      }
      this._rect(colour, x, top + 4, 4, LANE - 9);
      context.save();
      context.beginPath();
      context.rect(x, top, wide - 4, LANE);
      context.clip();
      context.font = palette.font;
      context.textBaseline = 'middle';
      this._text(lane.fixed === 'DELIVER' ? lane.name : tape.eventText(moment), x + 8, top + LANE / 2, palette.ink);
      context.restore();
    }
  }

  _runEnd(moment) {
    const { runs, count } = this.tape;
    const next = upperBound(runs, moment);
    return next < runs.length ? runs[next] : count;
  }

  /** One bar for each column that has an event; the more, the taller. */
  _bucketed(lane, top, width) {
    const { view, palette } = this;
    const perColumn = (view.span * COLUMN) / width;
    let i = lowerBound(lane.at, Math.floor(view.from));
    for (let x = 0; x < width && i < lane.at.length; ) {
      // Straight to the column of the next event.
      x = Math.max(x, Math.floor(this.x(lane.at[i], width) / COLUMN) * COLUMN);
      if (x >= width) break;
      const next = Math.max(i + 1, lowerBound(lane.at, Math.ceil(this.momentAt(x + COLUMN)), i));
      const share = Math.min(1, (next - i) / Math.max(1, perColumn));
      const tall = 5 + Math.round((LANE - 11) * Math.sqrt(share));
      this._rect(palette.kind[this._loudest(lane, i, next)], x, top + (LANE - tall) / 2, COLUMN, tall);
      this.visited++;
      i = next;
      x += COLUMN;
    }
  }

  _loudest(lane, from, to) {
    if (lane.fixed) return lane.fixed;
    const step = Math.max(1, Math.floor((to - from) / SAMPLES));
    let best = LOUDEST.length - 1;
    for (let i = from; i < to; i += step) {
      this.visited++;
      const rank = LOUDEST.indexOf(this.tape.codeAt(lane.at[i]).kind);
      if (rank >= 0 && rank < best) best = rank;
    }
    return LOUDEST[best];
  }

  /** How full a ring is: requests without an answer, of its size, as an area behind the bars. */
  _fill(lane, top, width) {
    const { tape, palette, view } = this;
    const { number, size } = lane.ring;
    const list = tape.ringPublications[number];
    const end = Math.min(view.from + view.span, tape.count);
    let i = Math.max(0, upperBound(lane.at, view.from) - 1);
    while (i < lane.at.length && lane.at[i] < end) {
      this.visited++;
      const x = Math.max(0, Math.floor(this.x(lane.at[i], width) / COLUMN) * COLUMN);
      const next = Math.max(i + 1, lowerBound(lane.at, Math.ceil(this.momentAt(x + COLUMN)), i));
      const until = next < lane.at.length ? Math.min(width, this.x(lane.at[next], width)) : this.x(end, width);
      const level = Math.min(1, tape.inFlight(list[next - 1]) / size);
      const tall = Math.ceil(level * (LANE - 2));
      if (tall) this._rect(palette.slot['in flight'], x, top + LANE - 1 - tall, Math.max(COLUMN, until - x), tall);
      i = next;
    }
  }

  _cursor(height) {
    const { palette, cursor } = this;
    const x = this.x(cursor.at);
    const wide = Math.max(2, Math.min(this.x(cursor.at + 1) - x, 3));
    this._rect(palette.accent, x, 0, wide, height);
  }

  _describe() {
    const { from, span } = this.view;
    const last = Math.min(this.tape.count, Math.ceil(from + span)) - 1;
    const label = `Events ${grouped(Math.floor(from))} to ${grouped(last)} of ${grouped(this.tape.count)}`;
    const chosen = this.cursor.lane ? `; Shift+arrows step in: ${this.cursor.lane.name}` : '';
    byId('timeline-range').textContent = label + chosen;
    this.canvas.setAttribute('aria-label', `${label}; chosen: event ${grouped(this.cursor.at)}`);
  }
}

/** 1, 2, 5, 10, 20...: the first that is not less. */
function niceStep(least) {
  let step = 1;
  for (;;) {
    for (const times of [1, 2, 5]) if (step * times >= least) return step * times;
    step *= 10;
  }
}

/** Mouse and fingers on the timeline: drag moves, wheel zooms, click chooses. */
class Pointer {
  constructor(timeline) {
    this.timeline = timeline;
    this.drag = null;
    const { canvas } = timeline;
    canvas.addEventListener('wheel', (event) => this._wheel(event), { passive: false });
    canvas.addEventListener('pointerdown', (event) => this._down(event));
    canvas.addEventListener('pointermove', (event) => this._move(event));
    canvas.addEventListener('pointerup', (event) => this._up(event));
    canvas.addEventListener('pointercancel', () => { this.drag = null; });
  }

  _wheel(event) {
    const { timeline } = this;
    event.preventDefault();
    const moments = timeline.view.span / timeline.width;
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      timeline.pan((event.deltaX || event.deltaY) * moments);
    } else {
      timeline.zoom(1.002 ** event.deltaY, timeline.momentAt(event.offsetX));
    }
  }

  _down(event) {
    if (event.button !== 0) return;
    this.drag = { x: event.offsetX, from: this.timeline.view.from, moved: false };
    this.timeline.canvas.setPointerCapture(event.pointerId);
  }

  _move(event) {
    if (!this.drag) return;
    const by = event.offsetX - this.drag.x;
    if (Math.abs(by) > 4) this.drag.moved = true;
    const { view, width } = this.timeline;
    if (this.drag.moved) this.timeline.look(this.drag.from - (by * view.span) / width, view.span);
  }

  _up(event) {
    const { drag, timeline } = this;
    this.drag = null;
    if (!drag || drag.moved) return;
    const row = Math.floor((event.offsetY - RULER + timeline.list.root.scrollTop) / LANE);
    const lane = event.offsetY >= RULER ? timeline.shown[row] : null;
    const moment = Math.floor(timeline.momentAt(event.offsetX));
    if (!lane || !lane.at.length) {
      timeline.cursor.set(moment);
      return;
    }
    timeline.list.active = row;
    timeline.cursor.choose(lane);
    // The lane's event that is nearest, if the click was on one or close by.
    const at = upperBound(lane.at, moment);
    const near = [lane.at[at - 1], lane.at[at]]
      .filter((one) => one !== undefined && Math.abs(timeline.x(one + 0.5) - event.offsetX) < 8 + timeline.width / timeline.view.span)
      .sort((a, b) => Math.abs(a - moment) - Math.abs(b - moment));
    timeline.cursor.set(near.length ? near[0] : moment);
  }
}

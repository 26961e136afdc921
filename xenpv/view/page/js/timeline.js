// The timeline: lanes over the order of events. Only what is in sight is drawn, and of many
// events in one column of pixels one bar: work is bounded by the screen, not by the tape.

const LANE = 24; // pixels
const RULER = 54;
const COLUMN = 2; // pixels of a bar when events are closer than that
const SAMPLES = 8; // of the events in one column, to find the loudest
const SPAN_MIN = 8; // events
const WORDS_FROM = 24; // pixels of an event

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
    this.isView = true;
    this.surface = new Surface(this.canvas, () => this.repaint());
    this.context = this.surface.context;
    this.brush = new Brush(this.context);
    this.picture = null; // all but the cursor, as long as `pictured` is what it shows
    this.pictured = '';
    // For tests: array elements looked at by the last draw; brush.drawn are what it drew.
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
      scrolled: () => this.draw(),
    });
    this.refresh();
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
      this.refresh();
    }
    this.cursor.choose(lane.at.length ? lane : null);
  }

  /** Some lane was opened or closed. As tall as its rows need, within limits; the rest scrolls. */
  refresh() {
    this.shown = openLanes(this.lanes);
    const rows = Math.max(6, Math.min(26, this.shown.length));
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
    this.cursor.redraw(false);
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

  get width() {
    return this.surface.width;
  }

  /** The colours or the size are others. */
  repaint() {
    this.pictured = '';
    this.draw();
  }

  draw() {
    const { surface, view, cursor, list } = this;
    this.brush.drawn = 0;
    this.visited = 0;
    surface.clear();
    if (!this.tape.count) return;
    const lane = cursor.lane ? cursor.lane.id : '';
    const open = this.lanes.map((one) => (one.open ? '1' : '0')).join('');
    const now = [view.from, view.span, list.scroll, lane, open].join(' ');
    if (this.pictured === now) {
      surface.paste(this.picture);
    } else {
      this._drawAll(surface.width, surface.height);
      this.picture = surface.copy();
      this.pictured = now;
    }
    this._cursor(surface.height);
    this.brush.flush();
    this._describe();
  }

  _drawAll(width, height) {
    const { context } = this;
    this._idle(width, height);
    this._ruler(width);
    context.save();
    context.beginPath();
    context.rect(0, RULER, width, height - RULER);
    context.clip();
    const { scroll } = this.list;
    for (let row = Math.floor(scroll / LANE); row < this.shown.length; row++) {
      const top = RULER + row * LANE - scroll;
      if (top >= height) break;
      this._lane(this.shown[row], top, width);
    }
    this.brush.flush();
    context.restore();
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
      this.brush.rect(palette.line, x, 0, 1, RULER - 18);
      if (width - x < 100) continue;
      this.brush.text(grouped(at), x + 4, 9, palette.ink);
      const time = this.tape.timeAt(at);
      if (time !== said) this.brush.text(seconds(time), x + 4, 25, palette.dim);
      said = time;
    }
    this.brush.rect(palette.line, 0, RULER - 1, width, 1);
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
      this.brush.rect(palette.idle, x, RULER - (isLong ? 18 : 7), COLUMN, isLong ? height : 6);
      const label = `+${duration(passed)}`;
      const wide = isLong && x > free ? context.measureText(label).width : Infinity;
      if (x + 8 + wide < width) {
        this.brush.text(label, x + 5, RULER - 9, palette.ink);
        free = x + 12 + wide;
      }
      i = after;
    }
  }

  _lane(lane, top, width) {
    const { palette } = this;
    this.brush.rect(palette.line, 0, top + LANE - 1, width, 1);
    if (lane === this.cursor.lane) this.brush.rect(palette.chosen, 0, top, width, LANE - 1);
    if (!lane.at.length) return;
    if (lane.ring) this._fill(lane, top, width);
    const pixels = width / this.view.span;
    if (pixels >= COLUMN) this._single(lane, top, pixels);
    else this._bucketed(lane, top, width);
  }

  /** Each event of its own: with room, in words. */
  _single(lane, top, pixels) {
    const { view, palette, tape } = this;
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
      if (pixels < WORDS_FROM) {
        this.brush.rect(colour, x, top + 5, wide, LANE - 10);
        continue;
      }
      this.brush.rect(colour, x, top + 4, 4, LANE - 9);
      // Words have the room up to the lane's next event.
      let after = i + 1;
      while (lane.at[after] === moment) after++;
      const room = (after < lane.at.length ? this.x(lane.at[after]) : this.width) - x - 10;
      this.brush.words(this._said(lane, moment), x + 8, top, room, LANE, palette.ink);
    }
  }

  _said(lane, moment) {
    const { tape } = this;
    if (lane.isTask) return lane.name;
    if (lane.fixed === 'FRAME') return tape.frameText(moment);
    if (lane.fixed === 'CHANGE') return tape.changeText(lowerBound(tape.changes.moment, moment));
    if (lane.ring) {
      const found = tape.publicationsAt(moment).filter((one) => tape.published.ring[one] === lane.ring.number);
      return found.map((one) => tape.publishedText(one)).join('; ');
    }
    return tape.eventText(moment);
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
      this.brush.rect(palette.kind[this._loudest(lane, i, next)], x, top + (LANE - tall) / 2, COLUMN, tall);
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
      if (tall) this.brush.rect(palette.slot['in flight'], x, top + LANE - 1 - tall, Math.max(COLUMN, until - x), tall);
      i = next;
    }
  }

  _cursor(height) {
    const { palette, cursor } = this;
    const x = this.x(cursor.at);
    const wide = Math.max(2, Math.min(this.x(cursor.at + 1) - x, 3));
    this.brush.rect(palette.accent, x, 0, wide, height);
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

// The whole run in one strip: what kinds of events each part of it has, and which part the
// timeline shows. Click or drag moves that part.

const OVERVIEW_SAMPLES = 24;

class Overview {
  constructor(tape, cursor, timeline) {
    this.tape = tape;
    this.cursor = cursor;
    this.timeline = timeline;
    this.canvas = byId('overview-canvas');
    this.picture = null;
    this.isView = true;
    this.surface = new Surface(this.canvas, () => this.repaint());
    const look = (event) => {
      if (!event.buttons) return;
      const { span } = timeline.view;
      const moment = (event.offsetX / this.surface.width) * tape.count;
      timeline.look(moment - span / 2, span);
    };
    this.canvas.addEventListener('pointerdown', look);
    this.canvas.addEventListener('pointermove', look);
  }

  repaint() {
    this.picture = null;
    this.show();
  }

  show() {
    const { context, width, height } = this.surface;
    this.surface.clear();
    if (!this.tape.count) return;
    if (this.picture) {
      this.surface.paste(this.picture);
    } else {
      this._paint(context, width, height);
      this.picture = this.surface.copy();
    }
    const { palette, view } = this.timeline;
    const scale = width / this.tape.count;
    const left = view.from * scale;
    const wide = Math.max(3, Math.min(view.span, this.tape.count) * scale);
    context.globalAlpha = 0.65;
    context.fillStyle = palette.panel;
    context.fillRect(0, 0, left, height);
    context.fillRect(left + wide, 0, width, height);
    context.globalAlpha = 1;
    context.strokeStyle = palette.accent;
    context.lineWidth = 2;
    context.strokeRect(left + 1, 1, wide - 2, height - 2);
    context.fillStyle = palette.accent;
    context.fillRect(this.cursor.at * scale, 0, 2, height);
  }

  /** Of each column the kinds' shares, from a few of its events. */
  _paint(context, width, height) {
    const { tape } = this;
    const { palette } = this.timeline;
    for (let x = 0; x < width; x += COLUMN) {
      const from = Math.floor((x * tape.count) / width);
      const to = Math.max(from + 1, Math.floor(((x + COLUMN) * tape.count) / width));
      const step = Math.max(1, Math.floor((to - from) / OVERVIEW_SAMPLES));
      const seen = {};
      let total = 0;
      for (let moment = from; moment < Math.min(to, tape.count); moment += step) {
        const { kind } = tape.codeAt(moment);
        seen[kind] = (seen[kind] || 0) + 1;
        total++;
      }
      let y = height;
      for (const kind of Object.keys(KINDS)) {
        if (!seen[kind]) continue;
        const tall = (seen[kind] / total) * height;
        y -= tall;
        context.fillStyle = palette.kind[kind];
        context.fillRect(x, y, COLUMN, tall + 0.5);
      }
    }
  }
}

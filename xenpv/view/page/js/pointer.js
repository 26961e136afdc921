// The timeline under a mouse or a finger.

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

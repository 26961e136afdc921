// The chosen moment, which all panels show, and the lane in which shift+arrows step.

class Cursor {
  constructor(count) {
    this.count = count;
    this.at = 0;
    this.lane = null;
    this.panels = [];
    this.waiting = false;
    this.isAll = false;
  }

  /** Panels have show(), which draws what the cursor says. */
  add(panel) {
    this.panels.push(panel);
  }

  /** Many keys in one frame are drawn once. */
  set(moment) {
    const bounded = Math.max(0, Math.min(this.count - 1, Math.round(moment)));
    if (this.count === 0 || bounded === this.at) return;
    this.at = bounded;
    this.redraw();
  }

  step(by) {
    this.set(this.at + by);
  }

  /** To the next event of the lane, or the one before. */
  stepInLane(by) {
    if (!this.lane) {
      this.step(by);
      return;
    }
    const { at } = this.lane;
    const found = by > 0 ? upperBound(at, this.at) : lowerBound(at, this.at) - 1;
    if (found >= 0 && found < at.length) this.set(at[found]);
  }

  choose(lane) {
    this.lane = lane;
    this.redraw();
  }

  /** At the next frame: all panels, or those alone that show which part of the run is in sight. */
  redraw(isAll = true) {
    this.isAll = this.isAll || isAll;
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => this.flush(this.isAll));
  }

  flush(isAll = true) {
    this.waiting = false;
    this.isAll = false;
    for (const panel of this.panels) if (isAll || panel.isView) panel.show();
  }
}

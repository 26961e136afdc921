// Canvases: their size, and how they are drawn on with few calls.

/** A canvas as large as its element, drawn in the page's pixels.
 *
 * The size is what the observer said: to ask the element would lay out the page each time.
 */
class Surface {
  constructor(canvas, resized) {
    this.canvas = canvas;
    this.context = canvas.getContext('2d');
    this.width = 1;
    this.height = 1;
    this.ratio = 1;
    this._measure();
    new ResizeObserver(() => {
      this._measure();
      resized();
    }).observe(canvas);
  }

  _measure() {
    this.width = Math.max(1, Math.floor(this.canvas.clientWidth));
    this.height = Math.max(1, Math.floor(this.canvas.clientHeight));
    this.ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.width * this.ratio);
    this.canvas.height = Math.round(this.height * this.ratio);
  }

  clear() {
    this.context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    this.context.clearRect(0, 0, this.width, this.height);
  }

  /** A copy of what is drawn, for `paste`. */
  copy() {
    const picture = document.createElement('canvas');
    picture.width = this.canvas.width;
    picture.height = this.canvas.height;
    picture.getContext('2d').drawImage(this.canvas, 0, 0);
    return picture;
  }

  paste(picture) {
    this.context.drawImage(picture, 0, 0, this.width, this.height);
  }
}

/** Rectangles and words on a context; `drawn` counts the calls that it took. */
class Brush {
  constructor(context) {
    this.context = context;
    this.pending = null;
    this.drawn = 0;
  }

  /** Neighbours that look alike become one rectangle. */
  rect(colour, x, y, width, height) {
    const { pending } = this;
    if (pending && pending.colour === colour && pending.y === y && pending.height === height
      && pending.end >= x && pending.x <= x) {
      pending.end = Math.max(pending.end, x + width);
      return;
    }
    this.flush();
    this.pending = { colour, x, y, end: x + width, height };
  }

  /** Before anything else is done with the context. */
  flush() {
    const { pending, context } = this;
    if (!pending) return;
    this.pending = null;
    context.fillStyle = pending.colour;
    context.fillRect(pending.x, pending.y, pending.end - pending.x, pending.height);
    this.drawn++;
  }

  text(text, x, y, colour) {
    this.flush();
    this.context.fillStyle = colour;
    this.context.fillText(text, x, y);
    this.drawn++;
  }

  /** As much of a text as there is room for, in the middle of a row. */
  words(text, x, top, room, height, colour) {
    if (room < 20) return;
    this.flush();
    const { context } = this;
    context.save();
    context.beginPath();
    context.rect(x, top, room, height);
    context.clip();
    this.text(text, x, top + height / 2, colour);
    context.restore();
  }
}

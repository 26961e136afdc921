// A list of any length of which only the rows in sight are elements.
//
// It is one stop of the Tab order. Up and down move its active row; what Enter or a click does
// with a row is `choose`.

// Browsers lose precision above 2^24 pixels; a longer list scrolls by proportion.
const PIXELS_MAX = 15000000;

class VirtualList {
  /** `row(i)` returns children; `rowClass(i)`, `rowAttributes(i)` are optional. */
  constructor(root, options) {
    this.root = root;
    this.options = { height: 22, role: 'listbox', rowRole: 'option', ...options };
    this.count = 0;
    this.active = -1;
    this.base = root.id;
    this.spacer = h('div', { class: 'spacer', role: 'presentation' });
    this.body = h('div', { class: 'rows', role: 'presentation' });
    root.append(this.spacer, this.body);
    root.tabIndex = 0;
    root.setAttribute('role', this.options.role);
    // Kept here, since to ask the element would lay out the page for each row that changed.
    this.scroll = root.scrollTop;
    this.height = root.clientHeight;
    root.addEventListener('scroll', () => {
      if (root.scrollTop === this.scroll) return;
      this.scroll = root.scrollTop;
      this.draw();
      if (this.options.scrolled) this.options.scrolled();
    });
    root.addEventListener('keydown', (event) => this._key(event));
    root.addEventListener('click', (event) => this._click(event));
    new ResizeObserver(() => {
      this.height = root.clientHeight;
      this.draw();
    }).observe(root);
  }

  setCount(count) {
    this.count = count;
    this.total = Math.min(count * this.options.height, PIXELS_MAX);
    this.spacer.style.height = `${this.total}px`;
    this.scroll = this.root.scrollTop;
    if (this.active >= count) this.active = count - 1;
    this.root.classList.toggle('empty', count === 0);
  }

  get inSight() {
    return Math.max(1, Math.floor(this.height / this.options.height));
  }

  /** The first row in sight. */
  get top() {
    const { height } = this.options;
    if (this.count * height <= PIXELS_MAX) return Math.floor(this.scroll / height);
    const range = this.total - this.height;
    return Math.floor((this.scroll / range) * (this.count - this.inSight));
  }

  scrollTo(row) {
    const { height } = this.options;
    const first = Math.max(0, Math.min(this.count - this.inSight, row));
    if (this.count * height <= PIXELS_MAX) {
      this.root.scrollTop = first * height;
    } else {
      const range = this.total - this.height;
      this.root.scrollTop = Math.ceil((first / (this.count - this.inSight)) * range);
    }
    this.scroll = this.root.scrollTop;
  }

  /** Bring a row into sight: the middle, if it was far away. */
  reveal(row) {
    const { top, inSight } = this;
    if (row >= top && row < top + inSight) return;
    if (row === top - 1) this.scrollTo(row);
    else if (row === top + inSight) this.scrollTo(row - inSight + 1);
    else this.scrollTo(row - (inSight >> 1));
  }

  setActive(row) {
    this.active = row;
    if (row >= 0) this.reveal(row);
    this.draw();
  }

  draw() {
    const { height, row, rowClass, rowAttributes, rowRole } = this.options;
    const first = this.top;
    const last = Math.min(this.count, first + this.inSight + 2);
    const scaled = this.count * height > PIXELS_MAX;
    const shown = [];
    for (let i = first; i < last; i++) {
      const attributes = {
        id: `${this.base}-${i}`,
        class: `row ${rowClass ? rowClass(i) : ''}${i === this.active ? ' active' : ''}`,
        role: rowRole,
        'data-row': i,
        'aria-setsize': this.count,
        'aria-posinset': i + 1,
        'aria-selected': i === this.active ? 'true' : 'false',
        ...(rowAttributes ? rowAttributes(i) : {}),
      };
      const element = h('div', attributes, ...row(i));
      element.style.top = `${scaled ? this.scroll + (i - first) * height : i * height}px`;
      element.style.height = `${height}px`;
      shown.push(element);
    }
    this.body.replaceChildren(...shown);
    const active = this.active >= first && this.active < last;
    if (active) this.root.setAttribute('aria-activedescendant', `${this.base}-${this.active}`);
    else this.root.removeAttribute('aria-activedescendant');
  }

  _click(event) {
    const element = event.target.closest('[data-row]');
    if (!element) return;
    const row = Number(element.dataset.row);
    this.active = row;
    this.options.choose(row, event);
    this.draw();
  }

  _key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, this.inSight - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    if (steps[event.key] && this.count) {
      const row = Math.max(0, Math.min(this.count - 1, this.active + steps[event.key]));
      this.setActive(row);
      if (this.options.move) this.options.move(row);
    } else if ((event.key === 'Enter' || event.key === ' ') && this.active >= 0) {
      this.options.choose(this.active, event);
      this.draw();
    } else {
      return;
    }
    event.preventDefault();
  }
}

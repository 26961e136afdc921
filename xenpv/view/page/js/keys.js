// Keys, search, theme, and the dialog that lists the keys.

const SEARCH_CHUNK = 20000; // events looked at before the page may draw

class Search {
  constructor(tape, cursor) {
    this.tape = tape;
    this.cursor = cursor;
    this.field = byId('search');
    this.said = byId('search-said');
    this.turn = 0;
    this.field.addEventListener('keydown', (event) => {
      if (event.key === 'Enter') this.go(event.shiftKey ? -1 : 1);
      if (event.key === 'Escape') {
        event.preventDefault(); // a browser would empty the field: n goes on with its words
        this.field.blur();
      }
    });
    byId('search-next').addEventListener('click', () => this.go(1));
    byId('search-previous').addEventListener('click', () => this.go(-1));
  }

  /** To the next event, or the one before, whose words have what was typed; round the end. */
  go(by) {
    const words = this.field.value.toLowerCase();
    const turn = ++this.turn;
    if (!words || !this.tape.count) return;
    const { count } = this.tape;
    let looked = 0;
    let at = this.cursor.at;
    this.said.textContent = 'searching';
    const look = () => {
      if (turn !== this.turn) return;
      for (let n = 0; n < SEARCH_CHUNK && looked < count; n++, looked++) {
        at = (at + by + count) % count;
        if (this.tape.searchText(at).includes(words)) {
          this.said.textContent = `event ${grouped(at)}`;
          this.cursor.set(at);
          return;
        }
      }
      if (looked < count) setTimeout(look);
      else this.said.textContent = 'not found';
    };
    look();
  }
}

class Theme {
  constructor(changed) {
    this.root = document.documentElement;
    this.button = byId('theme');
    this.media = matchMedia('(prefers-color-scheme: dark)');
    this.changed = changed;
    this.button.addEventListener('click', () => this.toggle());
    this.media.addEventListener('change', () => this._apply());
    this._label();
  }

  get isDark() {
    return this.root.dataset.theme ? this.root.dataset.theme === 'dark' : this.media.matches;
  }

  toggle() {
    this.root.dataset.theme = this.isDark ? 'light' : 'dark';
    this._apply();
  }

  _apply() {
    this._label();
    this.changed();
  }

  _label() {
    this.button.textContent = this.isDark ? 'Light' : 'Dark';
    this.button.setAttribute('aria-label', this.isDark ? 'Use light colours' : 'Use dark colours');
  }
}

/** What each key does wherever the focus is, but in a field one types into. */
function globalKeys({ cursor, timeline, search, theme }) {
  const help = byId('help');
  return {
    ArrowRight: () => cursor.step(1),
    ArrowLeft: () => cursor.step(-1),
    'Shift+ArrowRight': () => cursor.stepInLane(1),
    'Shift+ArrowLeft': () => cursor.stepInLane(-1),
    Home: () => cursor.set(0),
    End: () => cursor.set(cursor.count - 1),
    '+': () => timeline.zoom(0.5),
    '=': () => timeline.zoom(0.5),
    '-': () => timeline.zoom(2),
    0: () => timeline.whole(),
    '[': () => timeline.pan(-timeline.view.span / 2),
    ']': () => timeline.pan(timeline.view.span / 2),
    '/': () => search.field.focus(),
    n: () => search.go(1),
    N: () => search.go(-1),
    t: () => theme.toggle(),
    '?': () => { if (!help.open) help.showModal(); },
  };
}

function listen(keys) {
  document.addEventListener('keydown', (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey) return;
    if (byId('help').open) return;
    const isTyping = event.target.matches('input[type=search], input[type=number]');
    if (isTyping) return;
    const name = event.shiftKey && event.key.startsWith('Arrow') ? `Shift+${event.key}` : event.key;
    if (!Object.prototype.hasOwnProperty.call(keys, name)) return;
    event.preventDefault();
    keys[name]();
  });
}

// Colours of the canvases, from the style sheet, so that there is one place for both themes.

const KINDS = {
  DELIVER: 'a task runs',
  SEND: 'event channel: sends',
  PUBLISH: 'ring: publishes slots',
  STORE: 'store: request answered',
  CHANGE: 'store: node changes',
  FRAME: 'bridge: frame',
  GRANT: 'grant operation',
  TIMER: 'timer: time passes',
  NOTE: 'note',
  DOMAIN: 'domain comes or goes',
  DRAW: 'choice by the seed',
  OUTSIDE: 'input from outside',
};
// Of many events in one pixel the first of these is drawn.
const LOUDEST = ['OUTSIDE', 'DOMAIN', 'TIMER', 'NOTE', 'PUBLISH', 'STORE', 'GRANT', 'SEND', 'DELIVER', 'DRAW'];

class Palette {
  constructor() {
    this.read();
  }

  read() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    this.kind = Object.fromEntries(Object.keys(KINDS).map((name) => [name, get(`--kind-${name}`)]));
    for (const name of ['paper', 'panel', 'ink', 'dim', 'line', 'accent', 'chosen', 'idle']) {
      this[name] = get(`--${name}`);
    }
    this.slot = {};
    for (const name of ['empty', 'unconsumed', 'in flight', 'answered', 'done']) {
      this.slot[name] = get(`--slot-${name.replace(' ', '-')}`);
    }
    this.font = `12px ${get('--sans')}`;
    this.mono = `11px ${get('--mono')}`;
  }
}

// Builds the page: one tape, one cursor, and the panels that show it.

function main() {
  const tape = new Tape(JSON.parse(byId('tape').textContent));
  const cursor = new Cursor(tape.count);
  const palette = new Palette();
  const timeline = new Timeline(tape, cursor, palette);
  const overview = new Overview(tape, cursor, timeline);
  const rings = new RingsPanel(tape, cursor, palette);
  const store = new StorePanel(tape, cursor);
  const packets = new PacketsPanel(tape, cursor);
  const events = new EventsPanel(tape, cursor);
  const bar = new MomentBar(tape, cursor);
  for (const panel of [bar, timeline, overview, events, rings, store, packets]) cursor.add(panel);

  const search = new Search(tape, cursor);
  const theme = new Theme(() => {
    palette.read();
    timeline.repaint();
    overview.repaint();
    cursor.redraw();
  });
  const keys = globalKeys({ cursor, timeline, search, theme });
  listen(keys);
  for (const [id, key] of [['zoom-in', '+'], ['zoom-out', '-'], ['zoom-all', '0'], ['keys', '?']]) {
    byId(id).addEventListener('click', keys[key]);
  }
  byId('help-close').addEventListener('click', () => byId('help').close());
  // Print what the canvases show in the light colours that paper has.
  window.addEventListener('beforeprint', () => cursor.flush());

  // `run.html#event=123` opens at that event; else where the first slot is published.
  const wanted = /^#event=(\d{1,9})$/.exec(location.hash);
  const [first = 0] = tape.published.moment;
  cursor.set(wanted ? Number(wanted[1]) : first);
  document.documentElement.classList.add('ready');
  cursor.flush();
  // For the console, and for tests.
  window.xenpv = Object.freeze({ tape, cursor, timeline, overview, rings, store, packets, events, search, theme, palette });
}

main();

// Small things of the document: elements, numbers in words.

/** An element. Data become text nodes or attributes here and nowhere else: never markup. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (name === 'class') element.className = value;
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== '' && child !== null));
  return element;
}

function byId(id) {
  return document.getElementById(id);
}

/** 12345 as 12,345, whatever the reader's locale: equal pages look equal. */
function grouped(number) {
  return String(number).replace(/\B(?=(\d{3})+$)/g, ',');
}

/** A virtual time of the clock, exact to the ns: 1.200000000 s. */
function seconds(ns) {
  const whole = Math.floor(ns / 1e9);
  return `${grouped(whole)}.${String(Math.round(ns - whole * 1e9)).padStart(9, '0')} s`;
}

/** How long: 30 s, 1.5 ms, 250 ns. */
function duration(ns) {
  for (const [unit, size] of [['s', 1e9], ['ms', 1e6], ['µs', 1e3]]) {
    if (ns >= size) return `${Number((ns / size).toPrecision(4))} ${unit}`;
  }
  return `${ns} ns`;
}

function plural(count, noun) {
  return `${grouped(count)} ${noun}${count === 1 ? '' : 's'}`;
}

/** Offset, 16 bytes in hex, the printable ones in ASCII: a line for each 16 bytes. */
function hexDump(bytes) {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const row = Array.from(bytes.subarray(at, at + 16));
    const hex = row.map((byte) => byte.toString(16).padStart(2, '0'));
    const left = hex.slice(0, 8).join(' ').padEnd(23);
    const right = hex.slice(8).join(' ').padEnd(23);
    const shown = row.map((byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '.'));
    lines.push(`${at.toString(16).padStart(4, '0')}  ${left}  ${right}  ${shown.join('')}`);
  }
  return lines.join('\n');
}

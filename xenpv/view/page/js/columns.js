// Columns of numbers: the reader of xenpv/view/page/columns.py.

function bytesOf(base64) {
  const raw = atob(base64);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

/** Unsigned LEB128, one after the other. Sums, not shifts: a virtual time has 50 bits. */
class Varints {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  get done() {
    return this.at >= this.bytes.length;
  }

  next() {
    let value = 0;
    let scale = 1;
    for (;;) {
      if (this.at >= this.bytes.length) throw new RangeError('a column ends too early');
      const byte = this.bytes[this.at++];
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
      scale *= 128;
    }
  }
}

function unzigzag(value) {
  return value % 2 ? -(value + 1) / 2 : value / 2;
}

/** A column as an array of that type. */
function column(base64, Type) {
  const bytes = bytesOf(base64);
  let count = 0;
  for (let i = 0; i < bytes.length; i++) if (bytes[i] < 0x80) count++;
  const reader = new Varints(bytes);
  const out = new Type(count);
  for (let i = 0; i < count; i++) out[i] = reader.next();
  return out;
}

/** A column of differences. */
function deltaColumn(base64, Type) {
  const out = column(base64, Float64Array);
  let value = 0;
  for (let i = 0; i < out.length; i++) out[i] = value += unzigzag(out[i]);
  return Type === Float64Array ? out : Type.from(out);
}

/** How many of a sorted array are at most `value`. */
function upperBound(sorted, value, low = 0, high = sorted.length) {
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** How many of a sorted array are less than `value`. */
function lowerBound(sorted, value, low = 0, high = sorted.length) {
  return upperBound(sorted, value - 1, low, high);
}

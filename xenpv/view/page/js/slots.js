// Fields of a slot: numbers out of its bytes, and their names.

/** A little-endian number of a slot: a BigInt where 53 bits may not do. */
function scalar(bytes, offset, size, signed) {
  const whole = new Uint8Array(8);
  whole.set(bytes.subarray(offset, offset + size));
  const view = new DataView(whole.buffer);
  if (size === 8) return signed ? view.getBigInt64(0, true) : view.getBigUint64(0, true);
  const value = view.getUint32(0, true);
  const bits = 32 - size * 8;
  return signed ? (value << bits) >> bits : value;
}

/** READ, csum_blank|more_data, or a number; identifiers are easier to tell apart in hex. */
function inWords(value, name, enumeration) {
  if (!enumeration) {
    return name === 'id' || name.endsWith('.features') ? `0x${value.toString(16)}` : String(value);
  }
  const { names, isFlags } = enumeration;
  if (!isFlags) return names[value] === undefined ? String(value) : names[value];
  const found = [];
  let left = value;
  for (const bit of Object.keys(names)) {
    if (left & bit) {
      found.push(names[bit]);
      left &= ~bit;
    }
  }
  if (left || !found.length) found.push(left ? `0x${left.toString(16)}` : '0');
  return found.join('|');
}

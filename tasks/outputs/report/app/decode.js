// Reads what `packing.py` has written into the page: base64 of a gzip file with a header and columns of numbers.

const UNIT = 20000;
const UNDEFINED = -32768;

/** The data in the element `data-<name>`: {meta, columns}, columns by name as typed arrays; NaN means undefined. */
export async function readData(name) {
  const element = document.getElementById(`data-${name}`);
  const text = atob(element.textContent.trim());
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = new DataView(data.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(data.subarray(4, 4 + size)));
  const columns = {};
  for (const [key, [kind, count, start]] of Object.entries(header.columns)) {
    columns[key] = readColumn(kind, data.subarray(4 + size + start), count);
  }
  return { meta: header.meta, columns };
}

/** A column whose bytes of equal significance lie together, the lowest first. */
function readColumn(kind, data, count) {
  const byte = (significance, i) => data[significance * count + i];
  if (kind === "int") {
    return Int32Array.from({ length: count }, (_, i) => byte(0, i) | (byte(1, i) << 8) | (byte(2, i) << 16) | (byte(3, i) << 24));
  }
  if (kind === "unit") {
    return Float64Array.from({ length: count }, (_, i) => {
      const steps = ((byte(0, i) | (byte(1, i) << 8)) << 16) >> 16;
      return steps === UNDEFINED ? NaN : steps / UNIT;
    });
  }
  const wide = kind === "real"; // the first 24 bits of a float32, else the first 16
  const bits = Uint32Array.from({ length: count }, (_, i) => (wide ? (byte(0, i) << 8) | (byte(1, i) << 16) | (byte(2, i) << 24) : (byte(0, i) << 16) | (byte(1, i) << 24)));
  return new Float32Array(bits.buffer);
}

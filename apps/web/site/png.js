// PNG files as their pixels are: a canvas multiplies colours by alpha and forgets what lay beyond 8 bits.

import { Picture } from "./pillow.js";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const SAMPLES = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
const MOST_PIXELS = 64 * 2 ** 20;

export function isPng(bytes) {
  return SIGNATURE.every((one, place) => bytes[place] === one);
}

/**
 * Decode a PNG. Returns null for one that is interlaced or damaged: the browser may try.
 * A picture of 16-bit grey also has `deep`, its levels.
 */
export async function decodePng(bytes) {
  try {
    const chunks = chunksOf(bytes);
    const head = new DataView(chunks.IHDR[0].slice().buffer);
    const [width, height, depth, kind] = [head.getUint32(0), head.getUint32(4), head.getUint8(8), head.getUint8(9)];
    if (head.getUint8(12) !== 0 || width * height > MOST_PIXELS || !(kind in SAMPLES)) return null;
    const rows = unfiltered(await inflated(chunks.IDAT), width, height, depth, SAMPLES[kind]);
    return rows && assembled(rows, { width, height, depth, kind, palette: chunks.PLTE?.[0], clear: chunks.tRNS?.[0] });
  } catch {
    return null;
  }
}

function chunksOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const found = {};
  for (let at = SIGNATURE.length; at + 12 <= bytes.length; ) {
    const size = view.getUint32(at);
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    (found[name] ??= []).push(bytes.subarray(at + 8, at + 8 + size));
    at += 12 + size;
  }
  return found;
}

async function inflated(parts) {
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function unfiltered(raw, width, height, depth, samples) {
  const stride = Math.ceil((width * depth * samples) / 8);
  const back = Math.max((depth * samples) / 8, 1);
  if (raw.length < height * (stride + 1)) return null;
  const rows = new Uint8Array(height * stride);
  for (let y = 0; y < height; y++) {
    const filter = raw[y * (stride + 1)];
    for (let x = 0; x < stride; x++) {
      const at = y * stride + x;
      const left = x >= back ? rows[at - back] : 0;
      const above = y > 0 ? rows[at - stride] : 0;
      const corner = x >= back && y > 0 ? rows[at - stride - back] : 0;
      rows[at] = raw[y * (stride + 1) + 1 + x] + predicted(filter, left, above, corner);
    }
  }
  return rows;
}

function predicted(filter, left, above, corner) {
  if (filter === 1) return left;
  if (filter === 2) return above;
  if (filter === 3) return (left + above) >> 1;
  if (filter !== 4) return 0;
  const [byLeft, byAbove, byCorner] = [Math.abs(above - corner), Math.abs(left - corner), Math.abs(left + above - 2 * corner)];
  if (byLeft <= byAbove && byLeft <= byCorner) return left;
  return byAbove <= byCorner ? above : corner;
}

function assembled(rows, { width, height, depth, kind, palette, clear }) {
  const samples = SAMPLES[kind], stride = Math.ceil((width * depth * samples) / 8);
  const value = (y, place) => {
    if (depth === 8) return rows[y * stride + place];
    if (depth === 16) return rows[y * stride + 2 * place] * 256 + rows[y * stride + 2 * place + 1];
    const bit = place * depth;
    return (rows[y * stride + (bit >> 3)] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
  };
  const eight = (one) => (depth === 8 ? one : depth === 16 ? one >> 8 : Math.round((one * 255) / ((1 << depth) - 1)));
  const isColoured = kind !== 0 && kind !== 4;
  const transparent = clear && kind !== 3 && depth <= 8 ? keyOf(clear, samples) : null;
  const channels = kind >= 4 || clear ? 4 : isColoured ? 3 : 1;
  const made = new Picture(width, height, channels);
  if (kind === 0 && depth === 16) made.deep = new Uint16Array(width * height);
  for (let y = 0, out = 0; y < height; y++) {
    for (let x = 0; x < width; x++, out += channels) {
      const own = Array.from({ length: samples }, (_, one) => value(y, x * samples + one));
      if (made.deep) made.deep[y * width + x] = own[0];
      let [red, green, blue] = isColoured && kind !== 3 ? own.slice(0, 3).map(eight) : Array(3).fill(eight(own[0]));
      let alpha = kind >= 4 ? eight(own.at(-1)) : 255;
      if (kind === 3) {
        [red, green, blue] = palette.subarray(3 * own[0], 3 * own[0] + 3);
        alpha = clear?.[own[0]] ?? 255;
      }
      if (transparent && own.every((one, place) => one === transparent[place])) alpha = 0;
      made.data.set([red, green, blue, alpha].slice(0, channels), out);
    }
  }
  return made;
}

/** The one colour that is transparent. */
function keyOf(clear, samples) {
  return Array.from({ length: samples }, (_, one) => clear[2 * one] * 256 + clear[2 * one + 1]);
}

// `mnist-ink@1`, `@2` and `@3`: a drawing, or a photograph of one, becomes what MNIST holds. The steps, and why they are taken,
// stand in kit/tasks/images/ink.py, light.py, pieces.py and plain.py: each function here has its namesake there.

import { Picture, converted, gaussianBlur, reduce, resize, resizeInSteps, roundEven, thumbnail } from "./pillow.js";

/** What a person should be told about a picture. */
export class PictureInvalid extends Error {}

const LARGEST_SIDE = 640, LEAST_SIDE = 256, FINE = 160, BOX = 20 / 28;
const LEAST_CONTRAST = 24, NARROWEST = 8, SPECK = 12, FULL = 0.6;
const PEN = [2.6, 3.0];
const BLURS = [1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4];
const NEARLY = 0.9, COARSE = 256, WINDOWS = 3, WIDEST = 1 / 2;
const OFF = [
  [4, [0.55, 0.2, 0.13, 0.04, 0.012]],
  [2, [0.2, 0.1, 0.05, 0.02, 0.005]],
  [1, [0, 0, 0, 0, 0]],
];
const f32 = Math.fround;

/** A field of numbers: `data` row by row. */
function field(width, height, data) {
  return { width, height, data };
}

const grey = (picture) => field(picture.width, picture.height, picture.data);
const pictured = ({ width, height, data }) => new Picture(width, height, 1, data);

export function inkPixels(picture, height, width) {
  const ink = findInk(workingCopy(picture));
  let digit = scaled(cropped(field(ink.width, ink.height, Uint8Array.from(ink.data, (one) => roundEven(f32(one * 255))))), FINE);
  digit = cropped(withPen(digit));
  const small = scaled(digit, Math.min(height, width) * BOX);
  const top = f32(255 / Math.max(most(small.data), 1));
  return placeByMass(field(small.width, small.height, Uint8Array.from(small.data, (one) => roundEven(f32(one * top)))), height, width);
}

function workingCopy(picture) {
  const side = Math.max(picture.width, picture.height);
  if (side > LARGEST_SIDE) {
    if (side >= 2 * LARGEST_SIDE) picture = reduce(picture, Math.floor(side / LARGEST_SIDE));
    picture = thumbnail(picture, LARGEST_SIDE, "box");
  }
  let made = greyBytes(picture);
  if (side < LEAST_SIDE) made = scaled(made, LEAST_SIDE, "bicubic");
  if (Math.min(made.width, made.height) < NARROWEST) throw new PictureInvalid("The picture is a line: crop it less tightly.");
  return made;
}

function greyBytes(picture) {
  if (picture.channels !== 4 || isOpaque(picture)) return grey(converted(picture, 1));
  return field(picture.width, picture.height, Uint8Array.from(greyLevels(picture), roundEven));
}

function isOpaque(picture) {
  for (let at = 3; at < picture.data.length; at += 4) if (picture.data[at] !== 255) return false;
  return true;
}

/** Grey levels; what is transparent becomes the opposite of what is drawn. */
function greyLevels(picture) {
  const levels = Float32Array.from(converted(picture, 1).data);
  if (picture.channels !== 4) return levels;
  const alpha = levels.map((_, at) => picture.data[4 * at + 3] / 255);
  let [drawn, total] = [0, 0];
  levels.forEach((one, at) => {
    drawn += f32(one * alpha[at]);
    total += alpha[at];
  });
  const ground = drawn / Math.max(total, 1e-6) > 127.5 ? 0 : 255;
  return levels.map((one, at) => f32(one * alpha[at]) + f32(ground * f32(1 - alpha[at])));
}

function findInk(picture) {
  const { width, height } = picture;
  const found = relief(picture);
  const halves = sum3(field(width, height, Int16Array.from(found.levels, (one) => roundEven(2 * one))));
  const levels = Float32Array.from(halves.data, (one) => f32(one) / 18);
  const noise = (1.4826 * medianOfCounts(counted(halves.data, Math.abs))) / 18;
  const least = Math.max(LEAST_CONTRAST, 8 * noise);
  if (most(levels) < least) {
    throw new PictureInvalid("The picture is empty, or full of ink: draw something, and leave a margin around it.");
  }
  const mask = field(width, height, Uint8Array.from(levels, (one) => (one >= f32(least / 2) ? 1 : 0)));
  const near = boxOf(mask, 2);
  const sharp = cut(field(width, height, found.strength()), near);
  let kept = cut(mask, near);
  const soft = sum3(sharp);
  const strength = field(sharp.width, sharp.height, soft.data.map((one) => one / 9));
  kept = digitOf(kept, strength);
  const peak = percentile(strength.data.filter((_, at) => kept.data[at]), 90);
  const [low, range] = [f32(0.25 * peak), f32(0.6 * peak - 0.25 * peak)];
  const ink = new Float32Array(width * height);
  sharp.data.forEach((one, at) => {
    if (!kept.data[at]) return;
    const y = near.top + Math.floor(at / sharp.width), x = near.left + (at % sharp.width);
    ink[y * width + x] = Math.min(Math.max(f32(f32(one - low) / range), 0), 1);
  });
  checkAmount(field(width, height, Uint8Array.from(ink, (one) => (one >= 0.5 ? 1 : 0))));
  return field(width, height, ink);
}

function checkAmount(mask) {
  const { width, height, data } = mask;
  const box = boxOf(mask, 0);
  if (!box || Math.max(box.bottom - box.top, box.right - box.left) - 1 < SPECK) {
    throw new PictureInvalid("The picture is nearly empty: there is a speck on it, no drawing. Draw larger.");
  }
  let [inked, border] = [0, 0];
  for (let at = 0; at < data.length; at++) inked += data[at];
  for (let x = 0; x < width; x++) border += data[x] + data[(height - 1) * width + x];
  for (let y = 0; y < height; y++) border += data[y * width] + data[y * width + width - 1];
  if (inked > FULL * data.length || border / (2 * (width + height)) > FULL) {
    throw new PictureInvalid("The picture is full of ink: leave a margin around it.");
  }
}

/** The smallest box around all that is true, and some pixels more on each side; null if nothing is. */
function boxOf({ width, height, data }, margin) {
  let [top, bottom, left, right] = [height, -1, width, -1];
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (!data[at]) continue;
      if (y < top) top = y;
      bottom = y;
      if (x < left) left = x;
      if (x > right) right = x;
    }
  }
  if (bottom < 0) return null;
  return {
    top: Math.max(top - margin, 0), bottom: Math.min(bottom + 1 + margin, height),
    left: Math.max(left - margin, 0), right: Math.min(right + 1 + margin, width),
  };
}

function cut({ width, data }, { top, bottom, left, right }) {
  const made = new data.constructor((bottom - top) * (right - left));
  for (let y = top; y < bottom; y++) made.set(data.subarray(y * width + left, y * width + right), (y - top) * (right - left));
  return field(right - left, bottom - top, made);
}

function cropped(ink) {
  const box = boxOf(field(ink.width, ink.height, ink.data.map((one) => (one >= 64 ? 1 : 0))), 0);
  if (!box) throw new PictureInvalid("The picture is nearly empty. Draw larger.");
  return cut(ink, box);
}

function scaled(ink, side, filter = "bilinear") {
  const ratio = side / Math.max(ink.width, ink.height);
  const [height, width] = [ink.height, ink.width].map((size) => Math.max(1, roundEven(size * ratio)));
  return grey(resize(pictured(ink), width, height, filter));
}

/** The sum of the 3x3 pixels around each one; the picture goes on beyond its border as it is there. */
function sum3({ width, height, data }) {
  const rows = new data.constructor(data.length), made = new data.constructor(data.length);
  for (let y = 0, at = 0; y < height; y++) {
    const above = Math.max(y - 1, 0) * width, below = Math.min(y + 1, height - 1) * width;
    for (let x = 0; x < width; x++, at++) rows[at] = f32(data[above + x] + data[at]) + data[below + x];
  }
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const left = x > 0 ? rows[at - 1] : rows[at], right = x < width - 1 ? rows[at + 1] : rows[at];
      made[at] = f32(left + rows[at]) + right;
    }
  }
  return field(width, height, made);
}

function most(values) {
  let found = -Infinity;
  for (const one of values) if (one > found) found = one;
  return found;
}

function counted(values, of = (one) => one) {
  const counts = [];
  for (const one of values) counts[of(one)] = (counts[of(one)] ?? 0) + 1;
  return counts;
}

function medianOfCounts(counts) {
  const size = counts.reduce((sum, one) => sum + one, 0);
  const at = (place) => {
    let upto = 0;
    for (let value = 0; value < counts.length; value++) {
      upto += counts[value] ?? 0;
      if (upto > place) return value;
    }
    return counts.length;
  };
  return (at(Math.floor((size - 1) / 2)) + at(Math.floor(size / 2))) / 2;
}

function percentile(values, percent) {
  const ranked = Float32Array.from(values).sort();
  const whole = percent * (ranked.length - 1);
  const place = Math.floor(whole / 100), rest = whole % 100;
  const lower = ranked[place], upper = ranked[Math.min(place + 1, ranked.length - 1)];
  return lower + (upper - lower) * (rest / 100);
}

// ---- pieces: which belong to the digit

function digitOf(mask, strength) {
  const { width, height, data } = mask;
  const label = labelPieces(mask);
  const pieces = [];
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (!data[at]) continue;
      const one = (pieces[label[at]] ??= { weight: 0, top: height, bottom: 0, left: width, right: 0 });
      one.weight += Math.hypot(slope(strength.data, at, y, height, width), slope(strength.data, at, x, width, 1));
      one.top = Math.min(one.top, y);
      one.bottom = Math.max(one.bottom, y);
      one.left = Math.min(one.left, x);
      one.right = Math.max(one.right, x);
    }
  }
  if (pieces.length === 1) return mask;
  const main = pieces.reduce((best, one) => (one.weight > best.weight ? one : best));
  const reach = 0.5 * Math.max(main.bottom - main.top, main.right - main.left);
  const kept = pieces.map((one) => {
    const apart = Math.max(one.top - main.bottom, main.top - one.bottom, one.left - main.right, main.left - one.right);
    return one.weight >= 0.06 * main.weight && apart <= reach;
  });
  return field(width, height, data.map((one, at) => (one && kept[label[at]] ? 1 : 0)));
}

/** np.gradient at one place along an axis. */
function slope(data, at, place, size, stride) {
  if (size === 1) return 0;
  if (place === 0) return f32(data[at + stride] - data[at]);
  if (place === size - 1) return f32(data[at] - data[at - stride]);
  return f32((data[at + stride] - data[at - stride]) / 2);
}

/** Number the 8-connected pieces of a mask, in the order of their first pixels. */
function labelPieces({ width, height, data }) {
  const label = new Int32Array(data.length).fill(-1);
  const waiting = [];
  let pieces = 0;
  for (let first = 0; first < data.length; first++) {
    if (!data[first] || label[first] >= 0) continue;
    label[first] = pieces;
    waiting.push(first);
    while (waiting.length) {
      const at = waiting.pop(), y = Math.floor(at / width), x = at % width;
      for (let row = Math.max(y - 1, 0); row <= Math.min(y + 1, height - 1); row++) {
        for (let column = Math.max(x - 1, 0); column <= Math.min(x + 1, width - 1); column++) {
          const next = row * width + column;
          if (!data[next] || label[next] >= 0) continue;
          label[next] = pieces;
          waiting.push(next);
        }
      }
    }
    pieces++;
  }
  return label;
}

// ---- the pen

function strokeWidth({ width, height, data }) {
  const at = (y, x) => (y < 0 || x < 0 || y >= height || x >= width ? 0 : data[y * width + x]);
  let [area, outline] = [0, 0];
  for (let y = -1; y < height; y++) {
    for (let x = -1; x < width; x++) {
      const here = at(y, x), down = at(y + 1, x) - here, across = at(y, x + 1) - here;
      area += here;
      outline += Math.sqrt(down * down + across * across);
    }
  }
  return (2 * area) / Math.max(outline, 1e-6);
}

function withPen(digit) {
  const side = Math.max(digit.width, digit.height), width = strokeWidth(digit);
  const target = Math.min(Math.max((width * 20) / side, PEN[0]), PEN[1]) / 20;
  const radius = roundEven((side * target - width) / (2 * (1 - target)));
  const changed = radius ? spread(digit, radius) : digit;
  return most(changed.data) >= 128 ? changed : digit;
}

function spread(ink, radius) {
  const extreme = radius > 0 ? Math.max : Math.min;
  let made = bordered(ink, Math.max(radius, 0));
  for (let turn = 0; turn < Math.abs(radius); turn++) {
    made = turn % 5 === 1 || turn % 5 === 3 ? squares(extreme, made) : crosses(extreme, made);
  }
  return made;
}

function bordered({ width, height, data }, margin) {
  const made = new Uint8Array((width + 2 * margin) * (height + 2 * margin));
  for (let y = 0; y < height; y++) {
    made.set(data.subarray(y * width, (y + 1) * width), (y + margin) * (width + 2 * margin) + margin);
  }
  return field(width + 2 * margin, height + 2 * margin, made);
}

function crosses(extreme, { width, height, data }) {
  const at = (y, x) => (y < 0 || x < 0 || y >= height || x >= width ? 0 : data[y * width + x]);
  const made = new Uint8Array(data.length);
  for (let y = 0, place = 0; y < height; y++) {
    for (let x = 0; x < width; x++, place++) {
      made[place] = extreme(data[place], at(y - 1, x), at(y + 1, x), at(y, x - 1), at(y, x + 1));
    }
  }
  return field(width, height, made);
}

function squares(extreme, { width, height, data }) {
  const made = new Uint8Array(data.length);
  for (let y = 0, place = 0; y < height; y++) {
    for (let x = 0; x < width; x++, place++) {
      let found = data[place];
      for (let row = Math.max(y - 1, 0); row <= Math.min(y + 1, height - 1); row++) {
        for (let column = Math.max(x - 1, 0); column <= Math.min(x + 1, width - 1); column++) {
          found = extreme(found, data[row * width + column]);
        }
      }
      made[place] = found;
    }
  }
  return field(width, height, made);
}

// ---- light: which of the two is ink, and how much lies on each pixel

function relief(picture) {
  const { width, height, data } = picture;
  const [isLight, place] = leaning(picture);
  const dark = isLight ? data.map((one) => 255 - one) : data;
  const half = roundEven((Math.max(width, height) * Math.min(WINDOWS * BLURS[place], WIDEST)) / 2);
  const ground = closing(field(width, height, dark), 2 * half + 1).data;
  const below = ground.map((one, at) => one - dark[at]);
  const middle = medianOfCounts(counted(below));
  const levels = Float32Array.from(below, (one) => one - middle);
  const strength = () => levels.map((one, at) => Math.min(Math.max(f32(one / Math.max(ground[at], 1)), 0), 1));
  return { levels, strength };
}

/** Fill what is darker than its surroundings and narrower than `size`; the picture goes on beyond its border. */
function closing(picture, size) {
  for (const [extreme, beyond] of [[Math.max, size - 1], [Math.min, 0]]) {
    picture = turned(columnWindows(extreme, edged(picture, beyond), size));
    picture = turned(columnWindows(extreme, edged(picture, beyond), size));
  }
  return picture;
}

/** Repeat the first and the last row. */
function edged({ width, height, data }, rows) {
  const made = new Uint8Array(width * (height + 2 * rows));
  for (let y = 0; y < height + 2 * rows; y++) {
    const from = Math.min(Math.max(y - rows, 0), height - 1) * width;
    made.set(data.subarray(from, from + width), y * width);
  }
  return field(width, height + 2 * rows, made);
}

/** The extreme of the `size` pixels from each one downwards; windows double instead of growing by one. */
function columnWindows(extreme, { width, height, data }, size) {
  const isMost = extreme === Math.max;
  let flat = data;
  for (let done = 1; done < size; ) {
    const step = Math.min(done, size - done), away = step * width;
    const made = new Uint8Array(flat.length - away);
    for (let at = 0; at < made.length; at++) {
      const one = flat[at], other = flat[at + away];
      made[at] = one > other === isMost ? one : other;
    }
    flat = made;
    done += step;
  }
  return field(width, height - size + 1, flat);
}

function turned({ width, height, data }) {
  const made = new Uint8Array(data.length);
  for (let y = 0, at = 0; y < height; y++) for (let x = 0; x < width; x++, at++) made[x * height + y] = data[at];
  return field(height, width, made);
}

/** Whether the ink is light, and the place in BLURS of the narrowest that is nearly as one-sided as any. */
function leaning(picture) {
  const isEven = most(counted(picture.data).map((one) => one ?? 0)) >= picture.data.length / 2;
  const low = BLURS.map(() => -1), high = BLURS.map(() => 1);
  let asked = BLURS.map((_, place) => place);
  for (const [times, off] of isEven ? OFF : OFF.slice(-1)) {
    const copy = smallCopy(picture, times);
    for (const place of asked) {
      const found = leanAt(copy, BLURS[place]);
      low[place] = Math.max(found - off[place], -1);
      high[place] = Math.min(found + off[place], 1);
      const chosen = choose(low, high);
      if (chosen) return chosen;
    }
    asked = openPlaces(low, high);
  }
  const least = Math.min(...low);
  return [false, low.findIndex((one) => -one >= NEARLY * -least)];
}

const sum = (values) => values.reduce((total, one) => total + one, 0);

function towardsInk(low, high) {
  return sum(low) > 0 ? [low, high] : [high.map((one) => -one), low.map((one) => -one)];
}

function choose(low, high) {
  if (sum(low) <= 0 && sum(high) >= 0) return null;
  const [least, greatest] = towardsInk(low, high);
  const place = greatest.findIndex((one) => one >= NEARLY * Math.max(...least));
  return least[place] >= NEARLY * Math.max(...greatest) ? [sum(low) > 0, place] : null;
}

function openPlaces(low, high) {
  const all = low.map((_, place) => place);
  if (sum(low) <= 0 && sum(high) >= 0) return all;
  const [least, greatest] = towardsInk(low, high);
  const top = Math.max(...least), highest = Math.max(...greatest);
  return all.filter((place) => {
    const mayBe = greatest[place] >= NEARLY * top, mustBe = least[place] >= NEARLY * highest;
    return (mayBe && !mustBe) || greatest[place] >= top;
  });
}

function smallCopy({ width, height, data }, times) {
  const picture = new Picture(width, height, 1, data);
  if (times > 1) return reduce(picture, Math.max(1, roundEven((Math.max(width, height) * times) / COARSE)));
  return thumbnail(picture, COARSE, "box");
}

function leanAt(picture, blur) {
  const soft = gaussianBlur(picture, Math.max(picture.width, picture.height) * blur).data;
  let [cubes, size] = [0, 0];
  picture.data.forEach((one, at) => {
    const cube = (one - soft[at]) ** 3;
    cubes += cube;
    size += Math.abs(cube);
  });
  return cubes / Math.max(size, 1e-9);
}

// ---- mnist-ink@1, and the end of both

export function firstInkPixels(picture, height, width) {
  const levels = greyLevels(picture);
  const signed = firstInk(levels, picture.width, picture.height);
  const box = boxOf(field(picture.width, picture.height, Uint8Array.from(signed, (one) => (one >= 0.25 ? 1 : 0))), 0);
  const ink = cut(field(picture.width, picture.height, Uint8Array.from(signed, (one) => Math.trunc(f32(one * 255)))), box);
  const ratio = (Math.min(height, width) * 20) / 28 / Math.max(ink.width, ink.height);
  const [tall, wide] = [ink.height, ink.width].map((size) => Math.max(1, roundEven(size * ratio)));
  return placeByMass(grey(resizeInSteps(pictured(ink), wide, tall, "bicubic", 3)), height, width);
}

function firstInk(levels, width, height) {
  const edges = [
    ...levels.subarray(0, width), ...levels.subarray((height - 1) * width),
    ...Array.from({ length: height }, (_, y) => levels[y * width]),
    ...Array.from({ length: height }, (_, y) => levels[y * width + width - 1]),
  ].sort((one, other) => one - other);
  const middle = edges.length / 2;
  const ground = edges.length % 2 ? edges[Math.floor(middle)] : f32((edges[middle - 1] + edges[middle]) / 2);
  const lighter = most(levels) - ground, darker = ground + most(levels.map((one) => -one));
  const strongest = Math.max(lighter, darker);
  if (strongest < LEAST_CONTRAST) throw new PictureInvalid("The picture is empty: draw something first.");
  const sign = lighter >= darker ? 1 : -1;
  return levels.map((one) => Math.min(Math.max(f32(f32(sign * (one - ground)) / f32(strongest)), 0), 1));
}

function placeByMass(ink, height, width) {
  let [total, massY, massX] = [0, 0, 0];
  for (let y = 0, at = 0; y < ink.height; y++) {
    for (let x = 0; x < ink.width; x++, at++) {
      total += ink.data[at];
      massY += ink.data[at] * y;
      massX += ink.data[at] * x;
    }
  }
  total = Math.max(total, 1);
  const offset = (size, mass, largest) => Math.min(Math.max(roundEven((size - 1) / 2 - mass / total), 0), largest);
  const top = offset(height, massY, height - ink.height), left = offset(width, massX, width - ink.width);
  const made = new Picture(width, height, 1);
  for (let y = 0; y < ink.height; y++) {
    made.data.set(ink.data.subarray(y * ink.width, (y + 1) * ink.width), (top + y) * width + left);
  }
  return made;
}

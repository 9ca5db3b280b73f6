// The arithmetic of Pillow on 8-bit pictures: the same pixels here as in Python. What kit's pipelines ask of it, and no more.

/** A picture: `channels` values of 8 bits for each pixel, row by row. */
export class Picture {
  constructor(width, height, channels, data = new Uint8Array(width * height * channels)) {
    Object.assign(this, { width, height, channels, data });
  }
}

/** Round to the nearest whole number, halves to the even one: Python's round, numpy's rint. */
export function roundEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

const BITS = 22; // of the fraction of a weight
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(1 - Math.abs(x), 0)],
  bicubic: [2, bicubic],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

/** Weights of the `from` pixels that each of `to` pixels is made of, and the first of them. */
function weights(from, start, end, to, [support, filter]) {
  const scale = Math.fround(end - start) / to;
  const wide = Math.max(scale, 1);
  const reach = support * wide;
  const count = Math.ceil(reach) * 2 + 1;
  const firsts = new Int32Array(to), counts = new Int32Array(to), parts = new Int32Array(to * count);
  for (let place = 0; place < to; place++) {
    const middle = start + (place + 0.5) * scale;
    const first = Math.max(Math.trunc(middle - reach + 0.5), 0);
    const last = Math.min(Math.trunc(middle + reach + 0.5), from);
    const own = [];
    let total = 0;
    for (let one = first; one < last; one++) {
      own.push(filter((one - middle + 0.5) * (1 / wide)));
      total += own.at(-1);
    }
    own.forEach((weight, index) => {
      const share = (total === 0 ? weight : weight / total) * 2 ** BITS;
      parts[place * count + index] = Math.trunc(share < 0 ? share - 0.5 : share + 0.5);
    });
    firsts[place] = first;
    counts[place] = own.length;
  }
  return { firsts, counts, parts, count };
}

function clip8(sum) {
  const value = sum >> BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

function across(picture, width, start, end, filter) {
  const { firsts, counts, parts, count } = weights(picture.width, start, end, width, filter);
  const made = new Picture(width, picture.height, picture.channels);
  const { channels, data } = picture;
  for (let y = 0, out = 0; y < picture.height; y++) {
    const row = y * picture.width;
    for (let x = 0; x < width; x++) {
      for (let channel = 0; channel < channels; channel++, out++) {
        let sum = 1 << (BITS - 1);
        for (let one = 0, at = (row + firsts[x]) * channels + channel; one < counts[x]; one++, at += channels) {
          sum += data[at] * parts[x * count + one];
        }
        made.data[out] = clip8(sum);
      }
    }
  }
  return made;
}

function down(picture, height, start, end, filter) {
  const { firsts, counts, parts, count } = weights(picture.height, start, end, height, filter);
  const stride = picture.width * picture.channels;
  const made = new Picture(picture.width, height, picture.channels);
  for (let y = 0, out = 0; y < height; y++) {
    for (let x = 0; x < stride; x++, out++) {
      let sum = 1 << (BITS - 1);
      for (let one = 0, at = firsts[y] * stride + x; one < counts[y]; one++, at += stride) {
        sum += picture.data[at] * parts[y * count + one];
      }
      made.data[out] = clip8(sum);
    }
  }
  return made;
}

function nearest(picture, width, height) {
  const { channels } = picture;
  const made = new Picture(width, height, channels);
  const [stepX, stepY] = [picture.width / width, picture.height / height];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = (Math.floor((y + 0.5) * stepY) * picture.width + Math.floor((x + 0.5) * stepX)) * channels;
      made.data.set(picture.data.subarray(from, from + channels), (y * width + x) * channels);
    }
  }
  return made;
}

/** Image.resize: the filter widens with the ratio. `box` is [left, top, right, bottom] in pixels, of single precision. */
export function resize(picture, width, height, filter, box = [0, 0, picture.width, picture.height]) {
  const [left, top, right, bottom] = box.map(Math.fround);
  const isWhole = !left && !top && right === picture.width && bottom === picture.height;
  if (isWhole && width === picture.width && height === picture.height) return picture;
  if (filter === "nearest") return nearest(picture, width, height);
  if (picture.channels === 4) return apart(filtered(together(picture), width, height, filter, [left, top, right, bottom]));
  return filtered(picture, width, height, filter, [left, top, right, bottom]);
}

function filtered(picture, width, height, filter, [left, top, right, bottom]) {
  const isAcross = width !== picture.width || left || right !== width;
  const isDown = height !== picture.height || top || bottom !== height;
  const passes = [
    [isAcross, (one) => across(one, width, left, right, FILTERS[filter])],
    [isDown, (one) => down(one, height, top, bottom, FILTERS[filter])],
  ];
  const shrinks = picture.height - height;
  if (shrinks > 0 && shrinks > (picture.width - width) * 2) passes.reverse(); // as Pillow does since version 13
  return passes.reduce((made, [isNeeded, pass]) => (isNeeded ? pass(made) : made), picture);
}

/** Multiply colours by alpha, as Pillow does before it resizes. */
function together(picture) {
  const data = new Uint8Array(picture.data.length);
  for (let at = 0; at < data.length; at += 4) {
    const alpha = picture.data[at + 3];
    for (let one = at; one < at + 3; one++) data[one] = by255(picture.data[one] * alpha + 128);
    data[at + 3] = alpha;
  }
  return new Picture(picture.width, picture.height, 4, data);
}

/** Divide them by it again, in place. */
function apart(picture) {
  const { data } = picture;
  for (let at = 0; at < data.length; at += 4) {
    const alpha = data[at + 3];
    if (alpha === 0 || alpha === 255) continue;
    for (let one = at; one < at + 3; one++) data[one] = Math.min(Math.trunc((255 * data[one]) / alpha), 255);
  }
  return picture;
}

function by255(value) {
  return ((value >>> 8) + value) >>> 8;
}

/** Image.thumbnail without its first step: into a square of `side`, proportions kept; never larger. */
export function thumbnail(picture, side, filter) {
  const { width, height } = picture;
  if (side >= width && side >= height) return picture;
  const aspect = width / height;
  const fitted = (number, badness) => {
    const [low, high] = [Math.floor(number), Math.ceil(number)];
    return Math.max(badness(low) <= badness(high) ? low : high, 1);
  };
  if (1 >= aspect) return resize(picture, fitted(side * aspect, (n) => Math.abs(aspect - n / side)), side, filter);
  return resize(picture, side, fitted(side / aspect, (n) => (n === 0 ? 0 : Math.abs(aspect - side / n))), filter);
}

/** Image.reduce: means of `factorX` x `factorY` pixels, of fewer at the right and lower edge of `box`. */
export function reduce(picture, factorX, factorY = factorX, box = [0, 0, picture.width, picture.height]) {
  if (picture.channels === 4) return apart(reduced(together(picture), factorX, factorY, box));
  return reduced(picture, factorX, factorY, box);
}

function reduced(picture, factorX, factorY, [left, top, right, bottom]) {
  const { channels } = picture;
  const made = new Picture(Math.ceil((right - left) / factorX), Math.ceil((bottom - top) / factorY), channels);
  for (let y = 0, out = 0; y < made.height; y++) {
    const [fromY, toY] = [top + y * factorY, Math.min(top + (y + 1) * factorY, bottom)];
    for (let x = 0; x < made.width; x++) {
      const [fromX, toX] = [left + x * factorX, Math.min(left + (x + 1) * factorX, right)];
      const count = (toX - fromX) * (toY - fromY);
      const multiplier = Math.trunc(Math.fround(2 ** 32 / Math.fround(256 * count)));
      for (let channel = 0; channel < channels; channel++, out++) {
        let sum = count >> 1;
        for (let row = fromY; row < toY; row++) {
          for (let column = fromX; column < toX; column++) {
            sum += picture.data[(row * picture.width + column) * channels + channel];
          }
        }
        made.data[out] = Math.floor((sum * multiplier) / 2 ** 24);
      }
    }
  }
  return made;
}

/** Image.resize(..., reducing_gap): by whole numbers first, where that leaves enough to be resized. Of one channel. */
export function resizeInSteps(picture, width, height, filter, gap) {
  const factorX = Math.trunc(picture.width / width / gap) || 1;
  const factorY = Math.trunc(picture.height / height / gap) || 1;
  if (factorX === 1 && factorY === 1) return resize(picture, width, height, filter);
  const box = [0, 0, picture.width / factorX, picture.height / factorY];
  return resize(reduce(picture, factorX, factorY), width, height, filter, box);
}

/** ImageFilter.GaussianBlur of a grey picture: three box blurs (Gwosdek et al. 2011). */
export function gaussianBlur(picture, radius) {
  const half = boxRadius(radius, 3);
  const blurred = rowsBlurred(picture, half, 3);
  return transposed(rowsBlurred(transposed(blurred), half, 3));
}

function boxRadius(radius, passes) {
  const round = Math.fround;
  radius = round(radius);
  const variance = round(round(radius * radius) / passes);
  const length = round(Math.sqrt(12 * variance + 1));
  const whole = Math.floor((length - 1) / 2);
  const above = round((2 * whole + 1) * round(whole * (whole + 1) - round(3 * variance)));
  return round(whole + round(above / round(6 * round(variance - (whole + 1) * (whole + 1)))));
}

function rowsBlurred(picture, floatRadius, passes) {
  const { width, height } = picture;
  const radius = Math.trunc(floatRadius);
  const inner = Math.trunc(Math.fround(2 ** 24 / Math.fround(Math.fround(floatRadius * 2) + 1)));
  const outer = Math.trunc((2 ** 24 - (radius * 2 + 1) * inner) / 2);
  const made = new Picture(width, height, 1, picture.data.slice());
  const line = new Uint8Array(width);
  const last = width - 1;
  for (let y = 0; y < height; y++) {
    const row = made.data.subarray(y * width, (y + 1) * width);
    for (let pass = 0; pass < passes; pass++) {
      line.set(row);
      let sum = line[0] * (radius + 1);
      for (let x = 0; x < radius; x++) sum += line[Math.min(x, last)];
      for (let x = 0; x < width; x++) {
        const left = Math.max(x - radius - 1, 0), right = x + radius;
        sum += line[Math.min(right, last)] - line[left];
        row[x] = (sum * inner + (line[left] + line[Math.min(right + 1, last)]) * outer + 2 ** 23) >>> 24;
      }
    }
  }
  return made;
}

function transposed(picture) {
  const { width, height } = picture;
  const made = new Picture(height, width, 1);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) made.data[x * height + y] = picture.data[y * width + x];
  }
  return made;
}

/** Image.convert to 1, 3 or 4 channels: L, RGB or RGBA. Alpha is dropped. */
export function converted(picture, channels) {
  if (picture.channels === channels) return picture;
  const made = new Picture(picture.width, picture.height, channels);
  const { data } = picture, from = picture.channels;
  for (let at = 0, out = 0; at < data.length; at += from, out += channels) {
    const [red, green, blue] = from === 1 ? [data[at], data[at], data[at]] : [data[at], data[at + 1], data[at + 2]];
    if (channels === 1) {
      made.data[out] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >>> 16;
    } else {
      made.data.set([red, green, blue], out);
      if (channels === 4) made.data[out + 3] = from === 4 ? data[at + 3] : 255;
    }
  }
  return made;
}

/** Image.alpha_composite on black. */
export function onBlack(picture) {
  const made = new Picture(picture.width, picture.height, 4);
  for (let at = 0; at < made.data.length; at += 4) {
    const alpha = picture.data[at + 3];
    const share = Math.trunc((alpha * 255 * 255 * 128) / (alpha * 255 + 255 * (255 - alpha)));
    for (let one = at; one < at + 3; one++) {
      made.data[one] = alpha === 0 ? 0 : by255(picture.data[one] * share + (0x80 << 7)) >>> 7;
    }
    made.data[at + 3] = 255;
  }
  return made;
}

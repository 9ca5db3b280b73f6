// From a file, a camera or a drawing to what the model takes: the pipelines of kit/tasks/images, by the names that bundles have.

import { PictureInvalid, firstInkPixels, inkPixels } from "./ink.js";
import { Picture, converted, onBlack, resize, roundEven } from "./pillow.js";
import { decodePng, isPng } from "./png.js";

export { PictureInvalid };

const MOST_PIXELS = 64 * 2 ** 20;

const PIPELINES = {
  "mnist-ink": (picture, want, version) => (version === 1 ? firstInkPixels : inkPixels)(picture, want.height, want.width),
  resize: (picture, want) => {
    if (picture.channels === 4 && want.channels !== 4) picture = onBlack(picture);
    return resize(converted(picture, want.channels), want.width, want.height, "bicubic");
  },
  imagenet: middle,
};
const NEWEST = { "mnist-ink": 3, resize: 2, imagenet: 2 };

/** Whether this page knows a pipeline. */
export function knows(pipeline) {
  const [name, version] = pipeline.split("@");
  return name in PIPELINES && Number(version) <= NEWEST[name];
}

/**
 * The values of one picture, as they lie in the model's input.
 * `want`: {pipeline, height, width, channels, axis, colours, crop, dtype, mean, std}.
 */
export function encode(picture, want) {
  const [name, version] = want.pipeline.split("@");
  const isNewest = Number(version) === NEWEST[name];
  if (picture.deep) picture = inRange(picture, isNewest);
  const made = PIPELINES[name](picture, want, Number(version));
  const pixels = arranged(made, want);
  return want.dtype === "uint8" ? pixels : normalized(pixels, want);
}

/** Scale grey levels of 16 bits to 8: the newest versions from the picture's own range, those before from the whole. */
function inRange(picture, ownRange) {
  const { deep } = picture;
  let [low, high] = [0, 65535];
  if (ownRange) {
    low = deep.reduce((least, one) => Math.min(least, one), 65535);
    high = deep.reduce((most, one) => Math.max(most, one), 0);
  }
  const scale = high > low ? 255 / (high - low) : 0;
  const round = ownRange ? roundEven : Math.trunc;
  return new Picture(picture.width, picture.height, 1, Uint8Array.from(deep, (one) => round((one - low) * scale)));
}

/** `imagenet`: scale, then cut out the middle. */
function middle(picture, { height, width, channels, crop }) {
  picture = converted(picture, channels);
  const [tall, wide] = scaledSize(picture, height, width, crop);
  picture = padded(resize(picture, wide, tall, crop.interpolation), height, width);
  const top = roundEven((picture.height - height) / 2), left = roundEven((picture.width - width) / 2);
  const made = new Picture(width, height, channels);
  for (let y = 0; y < height; y++) {
    const from = ((top + y) * picture.width + left) * channels;
    made.data.set(picture.data.subarray(from, from + width * channels), y * width * channels);
  }
  return made;
}

function scaledSize(picture, height, width, crop) {
  if (Array.isArray(crop.resize)) return crop.resize;
  const wanted = crop.resize ? [crop.resize, crop.resize] : [height, width].map((size) => Math.floor(size / crop.crop_pct));
  if (wanted[0] !== wanted[1]) {
    const ratio = Math.min(picture.height / wanted[0], picture.width / wanted[1]);
    return [roundEven(picture.height / ratio), roundEven(picture.width / ratio)];
  }
  const [short, long] = [picture.width, picture.height].sort((one, other) => one - other);
  const other = Math.trunc((wanted[0] * long) / short);
  return picture.height <= picture.width ? [wanted[0], other] : [other, wanted[0]];
}

/** Give what is smaller than the cut a black border. */
function padded(picture, height, width) {
  const [tall, wide] = [Math.max(picture.height, height), Math.max(picture.width, width)];
  if (tall === picture.height && wide === picture.width) return picture;
  const { channels } = picture;
  const top = (tall - picture.height) >> 1, left = (wide - picture.width) >> 1;
  const made = new Picture(wide, tall, channels);
  const row = picture.width * channels;
  for (let y = 0; y < picture.height; y++) {
    made.data.set(picture.data.subarray(y * row, (y + 1) * row), ((top + y) * wide + left) * channels);
  }
  return made;
}

/** Pixels with their channels where the model has them, in its order of colours. */
function arranged({ width, height, channels, data }, { axis, colours }) {
  const isBgr = colours === "BGR" && axis !== null && channels === 3;
  if (channels === 1 || (axis === 2 && !isBgr)) return data;
  const made = new Uint8Array(data.length);
  const count = width * height;
  for (let place = 0, at = 0; place < count; place++) {
    for (let channel = 0; channel < channels; channel++, at++) {
      const own = isBgr ? channels - 1 - channel : channel;
      made[axis === 0 ? own * count + place : place * channels + own] = data[at];
    }
  }
  return made;
}

/** Scale, subtract, divide, in the order and precision of torchvision's ToTensor and Normalize. */
function normalized(pixels, { height, width, channels, axis, mean, std }) {
  const made = new Float32Array(pixels.length);
  const count = height * width;
  const of = (values, channel) => Math.fround(values.length === 1 ? values[0] : values[channel]);
  pixels.forEach((one, at) => {
    const channel = axis === 0 ? Math.floor(at / count) : at % channels;
    let value = Math.fround(one / 255);
    if (mean.length) value = Math.fround(Math.fround(value - of(mean, channel)) / of(std, channel));
    made[at] = value;
  });
  return made;
}

/** Read a file: PNG by its own pixels, what else the browser knows by its decoder, turned as EXIF says. */
export async function read(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (isPng(bytes)) {
    const found = await decodePng(bytes);
    if (found) return found;
  }
  let bitmap;
  try {
    const asIs = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
    bitmap = await createImageBitmap(blob, asIs);
  } catch {
    throw new PictureInvalid("This is no picture that the browser can read: give a PNG or a JPEG.");
  }
  if (bitmap.width * bitmap.height > MOST_PIXELS) throw new PictureInvalid("The picture is too large: scale it down first.");
  return ofBitmap(bitmap);
}

/** The pixels of an ImageBitmap, of three channels if nothing is transparent. */
export function ofBitmap(bitmap) {
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const picture = new Picture(width, height, 4, new Uint8Array(context.getImageData(0, 0, width, height).data.buffer));
  for (let at = 3; at < picture.data.length; at += 4) if (picture.data[at] !== 255) return picture;
  return converted(picture, 3);
}

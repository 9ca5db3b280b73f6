// From the model's outputs to what a person reads: the decoding of kit/tasks.

/** The values of an output as plain numbers. */
export function numbers({ dtype, data }) {
  if (dtype === "float16" && data instanceof Uint16Array) return Array.from(data, half);
  return Array.from(data, Number);
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

/** The classes of one sample, the most probable first. `want`: {labels, output, scores, temperature, unsure_below}. */
export function classes(outputs, want) {
  const scores = numbers(outputs[want.output]);
  const shares = want.scores === "logits" ? softmax(scores, want.temperature) : scores;
  const ranked = shares.map((share, place) => ({ label: want.labels[place], share }));
  ranked.sort((one, other) => other.share - one.share);
  return { kind: "classes", ranked, unsure: want.unsure_below !== null && ranked[0].share < want.unsure_below };
}

function softmax(logits, temperature) {
  const top = Math.max(...logits);
  const parts = logits.map((one) => Math.exp((one - top) / temperature));
  const total = parts.reduce((sum, one) => sum + one, 0);
  return parts.map((one) => one / total);
}

/** The vector of one text. `want`: {output, pooling, normalize, pad, own_end, filled_up}. */
export function vector(outputs, inputs, want) {
  const { dims } = outputs[want.output];
  const values = numbers(outputs[want.output]);
  const pooled = want.pooling === "none" ? values : pool(values, dims, maskOf(inputs, want), want.pooling);
  const size = Math.sqrt(pooled.reduce((sum, one) => sum + one * one, 0));
  return { kind: "vector", vector: want.normalize ? pooled.map((one) => one / Math.max(size, 1e-12)) : pooled };
}

function maskOf(inputs, want) {
  if (inputs.attention_mask) return inputs.attention_mask.values;
  const ids = inputs.input_ids.values;
  if (!want.filled_up) return ids.map(() => 1);
  let end = ids.length;
  while (end > 0 && ids[end - 1] === want.pad) end--;
  return ids.map((_, place) => (place < end + want.own_end ? 1 : 0));
}

function pool(values, [, length, size], mask, kind) {
  const at = (place) => values.slice(place * size, (place + 1) * size);
  if (kind === "cls") return at(0);
  const kept = Array.from({ length }, (_, place) => place).filter((place) => mask[place]);
  if (kind === "last") return at(kept.length - 1);
  const columns = Array.from({ length: size }, (_, one) => kept.map((place) => values[place * size + one]));
  if (kind === "max") return columns.map((column) => Math.max(...column));
  return columns.map((column) => column.reduce((sum, one) => sum + one, 0) / Math.max(kept.length, 1e-9));
}

export function cosine(one, other) {
  const dot = (first, second) => first.reduce((sum, value, place) => sum + value * second[place], 0);
  return dot(one, other) / Math.max(Math.sqrt(dot(one, one) * dot(other, other)), 1e-12);
}

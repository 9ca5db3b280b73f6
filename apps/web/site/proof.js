// The proof that travels in a bundle: golden samples with the original's answers, and raw items with the tensors they become.

import { numbers } from "./answers.js";
import { arrayOf } from "./session.js";

/** Read proof.json and proof.bin: `groups` of {inputs, expected, weights}, `items` of {raw, tensors}. */
export async function readProof() {
  const [described, bytes] = await Promise.all([
    fetch("proof.json").then((answer) => answer.json()),
    fetch("proof.bin").then((answer) => answer.arrayBuffer()),
  ]);
  const tensor = ({ dtype, dims, at, size }) => ({ dtype, dims, data: arrayOf(dtype, bytes.slice(at, at + size)) });
  const named = (tensors) => Object.fromEntries(Object.entries(tensors).map(([name, one]) => [name, tensor(one)]));
  return {
    groups: described.groups.map(({ inputs, expected, weights }) => ({
      inputs: named(inputs), expected: named(expected), weights: named(weights),
    })),
    items: described.items.map(({ raw, tensors }) => ({ raw, tensors: named(tensors) })),
  };
}

/** How one output compares with the original's over all groups. */
function compared(name, groups, answers) {
  let [largest, above, squares, count, agreeing, places] = [0, 0, 0, 0, 0, 0];
  groups.forEach(({ expected, weights }, group) => {
    const { dims, dtype } = expected[name];
    const reference = numbers(expected[name]), candidate = numbers(answers[group][name]);
    const counts = weights[name] ? spread(weights[name], dims) : null;
    reference.forEach((one, at) => {
      if (counts && !counts[at]) return;
      const off = one === candidate[at] || (isNaN(one) && isNaN(candidate[at])) ? 0 : Math.abs(candidate[at] - one);
      const found = Number.isFinite(off) ? off : Infinity;
      if (Number.isFinite(one)) largest = Math.max(largest, Math.abs(one));
      above = Math.max(above, found);
      squares += found ** 2;
      count += 1;
    });
    const isExact = !dtype.startsWith("float");
    const row = isExact || dims.length < 2 ? 1 : dims.at(-1);
    for (let at = 0; at < reference.length; at += row) {
      if (counts && !counts.slice(at, at + row).some(Boolean)) continue;
      places += 1;
      const [one, other] = [reference.slice(at, at + row), candidate.slice(at, at + row)];
      agreeing += row === 1 ? one[0] === other[0] : highest(one) === highest(other);
    }
  });
  return {
    output: name, relative: above / Math.max(largest, 1e-12), rms: Math.sqrt(squares / Math.max(count, 1)),
    agreement: agreeing / Math.max(places, 1), agreeing, places,
  };
}

function highest(values) {
  return values.reduce((best, one, place) => (one > values[best] ? place : best), 0);
}

/** Weights, each axis as long as the output's or 1, for each of its values. */
function spread({ data, dims: own }, dims) {
  const made = new Uint8Array(dims.reduce((product, one) => product * one, 1));
  for (let at = 0; at < made.length; at++) {
    let [rest, from, stride] = [at, 0, 1];
    for (let axis = dims.length - 1; axis >= 0; axis--) {
      const place = rest % dims[axis];
      rest = Math.floor(rest / dims[axis]);
      from += (own[axis] === 1 ? 0 : place) * stride;
      stride *= own[axis];
    }
    made[at] = Number(data[from]) ? 1 : 0;
  }
  return made;
}

/**
 * Hold answers to what the bundle promises. `promise`: {tolerance} of a float variant, or by output {rms, agreement} of a
 * quantized one, with the margins of kit/metrics/fidelity.py.
 */
export function judged(groups, answers, promise) {
  return Object.keys(groups[0].expected).map((name) => {
    const found = compared(name, groups, answers);
    if (promise.tolerance !== undefined) {
      return { ...found, passed: found.relative <= promise.tolerance, bar: `relative error at most ${promise.tolerance}` };
    }
    const own = promise.outputs[name];
    const least = own.agreement - Math.max(promise.slack, 1 / Math.max(found.places, 1)) - 1e-9;
    return {
      ...found,
      passed: found.rms <= own.rms * promise.margin && found.agreement >= least,
      bar: `rms error at most ${(own.rms * promise.margin).toPrecision(3)}`,
    };
  });
}

/** How many values of an item's tensors differ from Python's, and by how much at most. */
export function differing(found, wanted) {
  let [different, most, size] = [0, 0, 0];
  for (const [name, { data, dtype }] of Object.entries(wanted)) {
    const [one, other] = [numbers({ data, dtype }), numbers(found[name])];
    size += one.length;
    if (one.length !== other.length) return { different: one.length, most: Infinity, size };
    one.forEach((value, at) => {
      const off = Math.abs(value - other[at]);
      if (off > 0) different += 1;
      most = Math.max(most, off);
    });
  }
  return { different, most, size };
}

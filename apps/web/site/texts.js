// From texts to the ids of their tokens, as kit/tasks/tokens.py does it, by the tokenizer.json of the bundle.

import { Tokenizer } from "./tokenizers/tokenizers.min.mjs";

/** Open a tokenizer.json and the tokenizer_config.json that its library wants. */
export async function openTokenizer(url) {
  const json = await (await fetch(url)).json();
  return new Tokenizer({ ...json, truncation: null, padding: null }, {});
}

/**
 * The inputs of one text, or of a pair of texts, by name: {dtype, data, dims}.
 * `want`: {inputs: [{name, dtype}], pad, fixed, multiple, most, tail}.
 */
export function encode(tokenizer, text, want) {
  const [first, pair] = Array.isArray(text) ? text : [text];
  const found = tokenizer.encode(first, { text_pair: pair ?? null, return_token_type_ids: true });
  if (!found.ids.length) throw new Error("The text has no tokens.");
  const cut = (values) => shortened(values, want.most, want.tail);
  const ids = cut(found.ids);
  const length = want.fixed ?? Math.ceil(ids.length / want.multiple) * want.multiple;
  const filled = (values, rest) => Array.from({ length }, (_, place) => values[place] ?? rest);
  const all = {
    input_ids: filled(ids, want.pad),
    attention_mask: filled(cut(found.attention_mask), 0),
    token_type_ids: filled(cut(found.token_type_ids ?? []), 0),
    position_ids: Array.from({ length }, (_, place) => place),
  };
  return Object.fromEntries(want.inputs.map(({ name, dtype }) => [name, { dtype, values: all[name], dims: [1, length] }]));
}

/** Cut a text to `most` tokens, and keep the `tail` special ones at its end. */
function shortened(values, most, tail) {
  if (values.length <= most) return values;
  return [...values.slice(0, most - tail), ...values.slice(values.length - tail)];
}

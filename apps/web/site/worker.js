// The model, away from the page's own thread: encodes what people give, runs it, times it, proves it.

import * as answers from "./answers.js";
import * as pictures from "./pictures.js";
import { differing, judged, readProof } from "./proof.js";
import { Model, arrayOf, loadRuntime } from "./session.js";

let site, ort, model, tokenizer, texts;
const PICTURE = "picture";

const does = {
  /** Open a variant: {site, variant, threads, webgpu}. */
  async open({ site: described, variant, threads, webgpu }) {
    site = described;
    ort ??= await loadRuntime(new URL("./ort/", location.href), { threads, webgpu });
    const { graph, data } = site.variants.find((one) => one.id === variant);
    await model?.close();
    const beside = Object.fromEntries(Object.entries(data).map(([name, address]) => [name, new URL(address, location.href)]));
    model = await Model.open(ort, { graph: new URL(graph, location.href), data: beside, webgpu });
    return { version: ort.env.versions.web };
  },

  /** Answer one item: a Blob, an ImageBitmap, a text, or tensors. */
  async answer({ item }) {
    const inputs = await encoded(item);
    const started = performance.now();
    const outputs = await model.run(fed(inputs));
    const milliseconds = performance.now() - started;
    return { ...decoded(outputs, inputs), milliseconds, seen: seen(inputs) };
  },

  /** The median of calls with an item, in microseconds. */
  async time({ item, calls }) {
    const found = Array.from(await model.time(fed(await encoded(item)), calls)).sort((one, other) => one - other);
    return { us: found[Math.floor(found.length / 2)] };
  },

  async verify({ variant }) {
    const { groups, items } = await readProof();
    const given = [];
    for (const { inputs } of groups) given.push(await model.run(inputs));
    const ways = [];
    for (const { raw, tensors } of items) ways.push(differing(await encoded(ofRaw(raw)), tensors));
    return { outputs: judged(groups, given, site.variants.find((one) => one.id === variant).promise), ways };
  },
};

/** Inputs by name, {dtype, dims, data}, of what a person gave. */
async function encoded(item) {
  const { task } = site;
  if (task.kind === PICTURE) {
    const picture = item instanceof ImageBitmap ? pictures.ofBitmap(item) : await pictures.read(item);
    const data = pictures.encode(picture, task.way_in);
    return { [task.way_in.input]: { dtype: task.way_in.dtype, dims: task.way_in.dims, data } };
  }
  if (task.kind === "text") {
    texts ??= await import("./texts.js");
    tokenizer ??= await texts.openTokenizer(task.way_in.tokenizer);
    const found = texts.encode(tokenizer, item, task.way_in);
    return Object.fromEntries(
      Object.entries(found).map(([name, one]) => [name, { ...one, data: arrayOf(one.dtype, one.values) }]),
    );
  }
  return Object.fromEntries(
    Object.entries(item).map(([name, { dtype, dims, values }]) => [name, { dtype, dims, data: arrayOf(dtype, values) }]),
  );
}

function fed(inputs) {
  return Object.fromEntries(Object.entries(inputs).map(([name, { dtype, dims, data }]) => [name, { dtype, dims, data }]));
}

function decoded(outputs, inputs) {
  const { way_out: want } = site.task;
  if (want.kind === "classes") return answers.classes(outputs, want);
  if (want.kind === "vector") return answers.vector(outputs, inputs, want);
  return {
    kind: "tensors",
    outputs: Object.entries(outputs).map(([name, one]) => ({
      name, dtype: one.dtype, dims: one.dims, values: answers.numbers(one).slice(0, 64),
    })),
  };
}

/** What a raw item of the bundle is: the bytes of a PNG, or a text. */
function ofRaw(raw) {
  if (site.task.kind !== PICTURE) return raw;
  return new Blob([Uint8Array.from(atob(raw), (one) => one.charCodeAt(0))], { type: "image/png" });
}

/** What the model sees of a picture, if that is a picture of bytes. */
function seen(inputs) {
  const want = site.task.way_in;
  if (site.task.kind !== PICTURE || want.dtype !== "uint8") return null;
  return { ...want, data: inputs[want.input].data };
}

self.onmessage = async ({ data: { id, does: what, ...given } }) => {
  try {
    self.postMessage({ id, found: await does[what](given) });
  } catch (error) {
    self.postMessage({ id, problem: error?.message ?? String(error) });
  }
};

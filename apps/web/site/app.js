// The page: takes what people give, asks the worker, shows the answer, and says how it runs here.

import { cosine } from "./answers.js";
import { forPictures, forTensors, forTexts, made } from "./give.js";

const SLOW_US = 2000; // calls that are quicker gain nothing from threads or a GPU
const GPU_US = 20000; // and from here on its larger runtime is worth loading
const CALLS = 8;
const QUICK_CALLS = 200;
const MOST_THREADS = 4;
const SHOWN = 5;

const at = (id) => document.getElementById(id);
const said = (parts) => parts.filter(Boolean).join(", ");
let site, present, item, first;

/** A worker with a model of its own: `ask` gives what it answers. */
class Asked {
  constructor(how) {
    this.how = how;
    this.worker = new Worker("worker.js", { type: "module" });
    this.waiting = new Map();
    this.worker.onmessage = ({ data: { id, found, problem } }) => {
      const [resolve, reject] = this.waiting.get(id);
      this.waiting.delete(id);
      if (problem === undefined) resolve(found);
      else reject(new Error(problem));
    };
    this.worker.onerror = (event) => {
      const error = new Error(event.message || "the model's worker ended");
      for (const [, reject] of this.waiting.values()) reject(error);
      this.waiting.clear();
    };
  }

  ask(does, given = {}) {
    const id = crypto.randomUUID?.() ?? String(Math.random());
    return new Promise((resolve, reject) => {
      this.waiting.set(id, [resolve, reject]);
      this.worker.postMessage({ id, does, ...given });
    });
  }

  open(variant) {
    return this.ask("open", { site, variant, ...this.how });
  }

  close() {
    this.worker.terminate();
  }
}

async function begin() {
  site = await (await fetch("site.json")).json();
  document.title = site.name;
  at("name").textContent = site.name;
  at("about").textContent = site.about;
  offerVariants();
  at("verify").addEventListener("click", verify);
  at("files").textContent = `${site.files}; made by kit ${site.kit} with onnxruntime-web ${site.runtime}.`;
  const variant = variantOf(location.hash) ?? site.variants[0].id;
  present = new Asked({ threads: 1, webgpu: false });
  present.variant = variant;
  const opened = present.open(variant);
  const example = offer();
  const { version } = await opened;
  present.version = version;
  await example();
  await choose();
  document.documentElement.dataset.ready = "yes";
}

/** Offer what the task calls for; returns how to ask the example. */
function offer() {
  const { task } = site;
  const place = at("give");
  if (task.kind === "picture") {
    const show = forPictures(place, { draws: task.draws }, answer);
    return async () => {
      if (!task.example) return tell("Draw, or choose a picture.");
      const bytes = Uint8Array.from(atob(task.example), (one) => one.charCodeAt(0));
      return show(new Blob([bytes], { type: "image/png" }));
    };
  }
  if (task.kind === "text") {
    return forTexts(place, { pairs: task.way_out.kind === "vector", examples: task.examples }, answer);
  }
  return forTensors(place, { inputs: task.inputs }, answer);
}

let turn = 0;

/** Ask the model and show what it says; of several questions at once, only the last is shown. */
async function answer(given, kind) {
  const own = ++turn;
  if (given === null) return tell(kind, "bad");
  item = given;
  try {
    const several = kind === "text" ? given : [given];
    const found = [];
    for (const one of several) found.push(await present.ask("answer", { item: one }));
    if (own !== turn || !found.length) return;
    show(found);
    first ??= performance.now();
    describe(found[0].milliseconds);
  } catch (error) {
    if (own === turn) tell(error.message, "bad");
  }
}

function tell(text, kind = "quiet") {
  at("answer").replaceChildren(made("p", { class: kind }, text));
}

const percent = (share) => `${(100 * share).toFixed(share > 0.9995 && share < 1 ? 2 : 1)} %`;

function show(found) {
  const [one] = found;
  const place = at("answer");
  if (one.kind === "classes") {
    const [top] = one.ranked;
    const rows = one.ranked.slice(0, SHOWN).map(({ label, share }) => {
      const bar = made("span", { class: "bar" });
      bar.style.width = `${Math.max(100 * share, 0.5)}%`;
      return made("tr", {}, made("td", {}, label), made("td", {}, bar), made("td", {}, percent(share)));
    });
    place.replaceChildren(
      made("h2", {}, one.unsure ? `${top.label}?` : top.label),
      made("p", {}, one.unsure ? `Unsure: only ${percent(top.share)} for it.` : `${percent(top.share)} sure.`),
      made("table", {}, ...rows),
      ...(one.seen ? [seenBy(one.seen)] : []),
    );
  } else if (one.kind === "vector") {
    const alike = found.length > 1 ? cosine(one.vector, found[1].vector) : null;
    const head = alike === null ? `${one.vector.length} numbers` : alike.toFixed(3);
    const told = alike === null ? "The vector of the text." : "The cosine of their vectors: 1 for texts that say the same.";
    place.replaceChildren(made("h2", {}, head), made("p", {}, told), made("pre", {}, rounded(one.vector.slice(0, 16))));
  } else {
    place.replaceChildren(
      ...one.outputs.flatMap(({ name, dtype, dims, values }) => [
        made("p", {}, made("b", {}, name), ` ${dtype} [${dims.join(", ")}]`), made("pre", {}, rounded(values)),
      ]),
    );
  }
}

function rounded(values) {
  return values.map((one) => Number(one.toPrecision(5))).join(", ");
}

/** What the model sees, as a small picture. */
function seenBy({ data, height, width, channels, axis, colours }) {
  const canvas = made("canvas", { class: "seen", width, height, role: "img", "aria-label": "What the model sees" });
  const image = new ImageData(width, height);
  const count = width * height;
  for (let place = 0; place < count; place++) {
    for (let colour = 0; colour < 3; colour++) {
      const channel = channels === 1 ? 0 : colours === "BGR" ? 2 - colour : colour;
      image.data[4 * place + colour] = data[axis === 0 ? channel * count + place : place * channels + channel];
    }
    image.data[4 * place + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return made("p", {}, canvas, " ", made("span", { class: "quiet" }, "what the model sees"));
}

/** Try threads, and a GPU, where a call is slow enough for them; the quickest by a measured run stays. */
async function choose() {
  if (!item) return;
  const asked = Array.isArray(item) ? item[0] : item;
  present.us = (await present.ask("time", { item: asked, calls: CALLS })).us;
  if (present.us < SLOW_US) present.us = (await present.ask("time", { item: asked, calls: QUICK_CALLS })).us; // warm by now
  describe();
  if (present.us < SLOW_US) return;
  const threads = Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS);
  const others = [];
  if (crossOriginIsolated && threads > 1) others.push({ threads, webgpu: false });
  if (site.webgpu && present.us > GPU_US && (await navigator.gpu?.requestAdapter())) others.push({ threads: 1, webgpu: true });
  for (const how of others) {
    const other = new Asked(how);
    other.variant = present.variant;
    try {
      const { version } = await other.open(present.variant);
      Object.assign(other, { version, us: (await other.ask("time", { item: asked, calls: CALLS })).us });
      other.before = present.us;
    } catch {
      other.us = Infinity;
    }
    const [better, worse] = other.us < present.us ? [other, present] : [present, other];
    worse.close();
    present = better;
  }
  describe();
}

const named = ({ threads, webgpu }) => (webgpu ? "the GPU (WebGPU)" : `the CPU (WebAssembly, ${threads} thread${threads > 1 ? "s" : ""})`);
const time = (us) => (us < 1000 ? `${us.toPrecision(3)} µs` : `${(us / 1000).toPrecision(3)} ms`);

function describe(milliseconds = null) {
  const { size, id } = site.variants.find((one) => one.id === present.variant);
  const call = present.us ? `${time(present.us)} a call` : milliseconds === null ? null : `${milliseconds.toFixed(1)} ms for the first call`;
  at("runs").textContent = `${said([
    `${id} on ${named(present.how)}`, `${size}`, call, first && `first answer ${(first / 1000).toFixed(2)} s after the page was asked for`,
  ])}.${crossOriginIsolated || !(present.us > SLOW_US) ? "" : " Threads may be quicker: from the second visit on, this page may have them."}`;
}

function variantOf(hash) {
  const wanted = new URLSearchParams(hash.slice(1)).get("variant");
  return site.variants.find((one) => one.id === wanted)?.id;
}

function offerVariants() {
  if (site.variants.length < 2) return;
  const select = made("select", { id: "variant", "aria-label": "Variant" },
    ...site.variants.map(({ id, size }) => made("option", { value: id }, `${id}, ${size}`)));
  select.value = variantOf(location.hash) ?? site.variants[0].id;
  select.addEventListener("change", async () => {
    location.hash = `variant=${select.value}`;
    present.variant = select.value;
    present.us = undefined;
    at("verified").replaceChildren();
    await present.open(select.value);
    if (item) await answer(item, Array.isArray(item) ? "text" : "again");
    await choose();
  });
  at("variants").append("Variant ", select);
}

/** Ask a variant what the original was asked: {outputs, ways, wayHolds}. */
async function proved(variant) {
  if (variant !== present.variant) {
    await present.open(variant);
    present.variant = variant;
  }
  const { outputs, ways } = await present.ask("verify", { variant });
  return { outputs, ways, wayHolds: ways.every((one) => one.different === 0 || one.most <= site.task.way_in_tolerance) };
}

async function verify() {
  const place = at("verified");
  at("verify").disabled = true;
  place.replaceChildren(made("li", { class: "quiet" }, "asking…"));
  try {
    const { outputs, ways, wayHolds } = await proved(present.variant);
    const line = (holds, text) => made("li", { class: holds ? "good" : "bad" }, `${holds ? "Holds" : "FAILS"}: ${text}`);
    const lines = outputs.map((one) => line(one.passed,
      `${one.output}, the same answer on ${one.agreeing} of ${one.places}, relative error ${one.relative.toPrecision(2)}, rms error ${one.rms.toPrecision(2)} (${one.bar}).`));
    if (ways.length) {
      const exact = ways.filter((one) => one.different === 0).length;
      const most = Math.max(...ways.map((one) => one.most));
      const rest = exact === ways.length ? "" : `; the others differ by ${most.toPrecision(2)} at most`;
      lines.push(line(wayHolds, `${exact} of ${ways.length} items become the same tensors as in Python${rest}.`));
    }
    place.replaceChildren(...lines);
  } catch (error) {
    place.replaceChildren(made("li", { class: "bad" }, error.message));
  }
  at("verify").disabled = false;
}

window.kit = { verify: proved, get firstAnswer() { return first ?? null; } };

if ("serviceWorker" in navigator && !new URLSearchParams(location.search).has("plain")) {
  navigator.serviceWorker.register("sw.js").catch(() => {});
}
begin().catch((error) => {
  tell(`The model cannot be run here: ${error.message}`, "bad");
  document.documentElement.dataset.ready = "no";
});

// A model in onnxruntime-web: opened, run, timed. Shared by the page that `kit web` writes and by `kit bench --runtime browser`.

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: globalThis.Float16Array ?? Uint16Array,
  int8: Int8Array, uint8: Uint8Array, bool: Uint8Array, int16: Int16Array, uint16: Uint16Array,
  int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
};

/** An array of a tensor's type: of numbers, or of the bytes that hold them. */
export function arrayOf(dtype, values) {
  const kind = ARRAYS[dtype];
  if (!kind) throw new Error(`onnxruntime-web takes no tensors of ${dtype}`);
  if (values instanceof ArrayBuffer) return new kind(values);
  return kind === BigInt64Array || kind === BigUint64Array ? kind.from(values, BigInt) : kind.from(values, Number);
}

/**
 * Load onnxruntime-web. `folder` holds its files; `webgpu` takes the larger build that has both providers.
 * Once loaded, the number of threads stays.
 */
export async function loadRuntime(folder, { threads = 1, webgpu = false } = {}) {
  const ort = await import(new URL(webgpu ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs", folder));
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = folder.href ?? folder;
  ort.env.logLevel = "error";
  return ort;
}

const WARM = 10; // calls before the first that are timed
const STEPS = 20; // of the clock that a reading must outlast

/** A model that is open. `graph` and `data` are addresses: the .onnx, and by name the files that hold its weights. */
export class Model {
  #typical; // microseconds of a call, the least that was seen
  #step; // of the clock

  static async open(ort, { graph, data = {}, webgpu = false }) {
    const answer = await fetch(graph);
    if (!answer.ok) throw new Error(`${graph} is not there: ${answer.status}`);
    const options = {
      executionProviders: [webgpu ? "webgpu" : "wasm"],
      externalData: Object.entries(data).map(([path, address]) => ({ path, data: String(address) })),
      enableCpuMemArena: true,
    };
    return new Model(ort, await ort.InferenceSession.create(new Uint8Array(await answer.arrayBuffer()), options));
  }

  constructor(ort, session) {
    this.ort = ort;
    this.session = session;
  }

  /** Outputs by name, {dtype, dims, data}, for inputs of the same kind. */
  async run(inputs) {
    const outputs = await this.session.run(this.#fed(inputs));
    return Object.fromEntries(
      Object.entries(outputs).map(([name, one]) => [name, { dtype: one.type, dims: [...one.dims], data: one.data }]),
    );
  }

  /**
   * Time about so many calls with the same inputs: an array of microseconds, each a mean over as many calls as it takes to
   * outlast the steps of the browser's clock.
   */
  async time(inputs, calls) {
    const fed = this.#fed(inputs);
    if (!this.#typical) {
      this.#step = clockStep();
      this.#typical = await this.#turn(fed, WARM);
    }
    const group = Math.ceil((STEPS * this.#step) / this.#typical);
    const found = new Float64Array(Math.max(1, Math.round(calls / group)));
    for (let turn = 0; turn < found.length; turn++) found[turn] = await this.#turn(fed, group);
    this.#typical = Math.min(this.#typical, ...found); // engines grow quicker for a while
    return found;
  }

  async #turn(fed, calls) {
    const started = performance.now();
    for (let call = 0; call < calls; call++) await this.session.run(fed);
    return ((performance.now() - started) * 1000) / calls;
  }

  async close() {
    await this.session.release();
  }

  #fed(inputs) {
    return Object.fromEntries(
      Object.entries(inputs).map(([name, one]) => [name, new this.ort.Tensor(one.dtype, one.data, one.dims)]),
    );
  }
}

/** The least step of the browser's clock in microseconds, as it is seen. */
export function clockStep() {
  let least = Infinity;
  for (let tries = 0; tries < 20; tries++) {
    const started = performance.now();
    let now = started;
    while (now === started) now = performance.now();
    least = Math.min(least, now - started);
  }
  return least * 1000;
}

/** Which build of onnxruntime-web runs a model, and on what. */

const MOST_THREADS = 4;

/** Nothing here runs the model. The message is meant for the user. */
export class BackendError extends Error {
  name = "BackendError";
}

/**
 * What can run a model here, the preferred first.
 *
 * WebGPU drivers differ, so a model is taken there only if it passes its self-test (`mustPass`).
 */
export async function choices(ort, backend) {
  if (!["auto", "webgpu", "wasm"].includes(backend)) {
    throw new BackendError(`there is no backend ${JSON.stringify(backend)}; take "auto", "webgpu" or "wasm"`);
  }
  const onWebGpu = (load) => ({ load, backend: "webgpu", providers: ["webgpu"], mustPass: true });
  const onWasm = (load) => ({ load, backend: "wasm", providers: ["wasm"], mustPass: false });
  if (ort) {
    const load = async () => ort;
    if (backend === "webgpu") return [onWebGpu(load)];
    const isNative = Boolean(ort.env?.versions?.node); // onnxruntime-node
    return [isNative ? { load, backend: "cpu", providers: null, mustPass: false } : onWasm(load)];
  }
  // Two builds: that with WebGPU has twice the bytes, and is fetched only where there is a GPU. package.json says which
  // build "#onnxruntime-web" is in Node and in browsers, so that a bundle for browsers holds none for Node.
  const plain = () => imported(() => import("#onnxruntime-web"));
  const withGpu = () => imported(() => import("onnxruntime-web/webgpu"));
  if (backend === "wasm") return [onWasm(plain)];
  // Node has no `navigator.gpu`.
  const adapter = await Promise.resolve(globalThis.navigator?.gpu?.requestAdapter()).catch(() => null);
  if (backend === "webgpu") {
    if (!adapter) throw new BackendError("there is no WebGPU adapter here");
    return [onWebGpu(withGpu)];
  }
  // Not the WebAssembly of the build with WebGPU: a driver that hangs may hold it.
  return adapter ? [onWebGpu(withGpu), onWasm(plain)] : [onWasm(plain)];
}

async function imported(load) {
  try {
    return await load();
  } catch (error) {
    throw new BackendError(`onnxruntime-web cannot be loaded (${error.message}); npm install onnxruntime-web`, {
      cause: error,
    });
  }
}

const queues = new WeakMap();

/** Run a task when the earlier ones of this module are done: onnxruntime-web takes one at a time, of all its sessions. */
export function inTurn(ort, task) {
  const answer = (queues.get(ort) ?? Promise.resolve()).then(task);
  queues.set(ort, answer.catch(() => {})); // the next task does not fail because this one did
  return answer;
}

/** Threads share memory, which browsers allow to cross-origin isolated pages only. Read at a module's first session. */
export function setThreads(ort, threads) {
  if (!ort.env?.wasm) return;
  const cores = globalThis.navigator?.hardwareConcurrency ?? 1;
  ort.env.wasm.numThreads = threads ?? (globalThis.crossOriginIsolated ? Math.min(MOST_THREADS, cores) : 1);
}

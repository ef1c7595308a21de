/** onnxruntime-web from this folder: WebAssembly with SIMD. */

import * as ort from "./ort/ort.wasm.min.js";

ort.env.wasm.proxy = false;
ort.env.logLevel = "error";
ort.env.wasm.wasmPaths = {
  mjs: new URL("./ort/ort-wasm-simd-threaded.js", import.meta.url).href,
  wasm: new URL("./ort/ort-wasm-simd-threaded.wasm", import.meta.url).href,
};

export { ort };

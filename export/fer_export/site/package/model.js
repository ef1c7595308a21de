/** A model file in onnxruntime-web. Labels, size and colour of a face are read from the file itself. */

import { replayCertificate } from "./certificate.js";
import { prepareFace } from "./face.js";
import { ModelFileError, readMetadata, readSource } from "./onnx-file.js";
import { doubtsOf, reasonsOf } from "./quality.js";
import { BackendError, choices, inTurn, setThreads } from "./runtime.js";

const GPU_SECONDS = 20; // for loading a model on WebGPU, its first run and its self-test

/** A model of any labels. */
export class FaceModel {
  #session;

  constructor(ort, session, metadata, { backend = "wasm", refused = [] } = {}) {
    /** The module that runs it, onnxruntime-web's. */
    this.ort = ort;
    this.#session = session;
    /** The file's `fer` entry: name, precision, labels, size, color, temperature, certificate ... */
    this.metadata = metadata;
    /** Names in the order of the logits. */
    this.labels = metadata.labels;
    /** Pixels, the side of a face. */
    this.size = metadata.size;
    /** "gray" or "rgb". */
    this.color = metadata.color;
    /** "webgpu", "wasm", or "cpu" in onnxruntime-node. */
    this.backend = backend;
    /** What was tried before this backend, with the reason why it was not taken: {backend, reason}. */
    this.refused = refused;
  }

  /**
   * Open a model on WebGPU, where the browser has it and the file's own golden faces are computed right on it;
   * otherwise in WebAssembly.
   *
   * @param {string | URL | ArrayBuffer | Uint8Array} source address or content of an .onnx file; in Node also a path
   * @param {object} [options]
   * @param options.ort the module to use, such as one whose files you serve yourself; without it the peer
   *   dependency onnxruntime-web is imported
   * @param {"auto" | "webgpu" | "wasm"} [options.backend]
   * @param {number} [options.threads] of WebAssembly; without it up to 4 where the page is cross-origin isolated,
   *   otherwise 1
   * @throws {ModelFileError} the file is missing, damaged or not one of fer-export
   * @throws {BackendError} nothing here runs it
   */
  static async load(source, { ort, backend = "auto", threads } = {}) {
    const content = await readSource(source);
    const name = typeof source === "string" || source instanceof URL ? String(source) : "the model";
    const metadata = readMetadata(content, name);
    const refused = [];
    for (const choice of await choices(ort, backend)) {
      const model = await open(choice, content, metadata, name, threads, refused);
      if (model) return model;
    }
    throw new BackendError(`${name} cannot be run here: ${refused.at(-1).reason}`);
  }

  /**
   * @param {Uint8Array} faces one face, or several one after the other; see `prepareFace`
   * @returns {Promise<{logits: Float32Array, probabilities: Float32Array, unfamiliarity: Float32Array | null}>} one value
   *   for each label and face; of `unfamiliarity` one for each face, null where the file has no such output
   */
  run(faces) {
    const shape = this.color === "rgb" ? [this.size, this.size, 3] : [this.size, this.size];
    const area = shape.reduce((product, side) => product * side);
    if (!(faces instanceof Uint8Array) || faces.length === 0 || faces.length % area) {
      throw new RangeError(`faces of ${faces?.length} values; each face is a Uint8Array of ${area}`);
    }
    const input = new this.ort.Tensor("uint8", faces, [faces.length / area, ...shape]);
    return inTurn(this.ort, async () => {
      const { logits, probabilities, unfamiliarity } = await this.#session.run({ faces: input });
      return { logits: logits.data, probabilities: probabilities.data, unfamiliarity: unfamiliarity?.data ?? null };
    });
  }

  /**
   * The answer for one face of an image.
   *
   * @param {{data: ArrayLike<number>, width: number, height: number}} image such as an ImageData
   * @param {{x: number, y: number, width: number, height: number}} [box] of the face, pixels; without it the whole
   *   image is the face
   * @param {{roll?: number, landmarks?: number[][]}} [how] degrees that the face is turned clockwise; x and y of right
   *   eye, left eye and nose, without which nothing is known of `turned`
   */
  async classify(image, box, { roll = 0, landmarks = null } = {}) {
    const face = prepareFace(image, box, roll, this);
    const { probabilities, unfamiliarity } = await this.run(face);
    const whole = { x: 0, y: 0, width: image.width, height: image.height };
    const detection = { box: box ?? whole, roll, landmarks };
    return this.answer(probabilities, doubtsOf(image, detection, face, this, unfamiliarity?.[0] ?? null));
  }

  /**
   * One face's probabilities by name, with the label and the reasons against it.
   *
   * @param {Float32Array} probabilities
   * @param {object} [doubts] of a face of `Recognizer`; without it nothing but the confidence is known
   * @param {number} [best] index of the label, such as a `Follower`'s; without it the most probable one
   */
  answer(probabilities, doubts = {}, best = probabilities.indexOf(Math.max(...probabilities))) {
    const least = this.metadata.uncertain_below ?? null;
    const isLow = least === null ? null : probabilities[best] < least;
    return {
      expression: this.labels[best],
      confidence: probabilities[best],
      /** Less sure than the threshold that the export fitted. */
      uncertain: isLow ?? false,
      probabilities: Object.fromEntries(this.labels.map((name, index) => [name, probabilities[index]])),
      ...reasonsOf({ ...doubts, low_confidence: isLow }),
    };
  }

  /** Does this machine compute what was exported? The golden faces inside the file, replayed; null if it has none. */
  selfTest() {
    return replayCertificate(this);
  }

  /** Free the memory. */
  release() {
    return inTurn(this.ort, () => this.#session.release());
  }
}

/** The model on one backend, or null with the reason in `refused`. */
async function open(choice, content, metadata, name, threads, refused) {
  const { load, backend, providers, mustPass } = choice;
  const attempt = async () => {
    const ort = await load();
    setThreads(ort, threads);
    const settings = { graphOptimizationLevel: "all", ...(providers && { executionProviders: providers }) };
    const session = await inTurn(ort, () => ort.InferenceSession.create(content, settings));
    for (const output of ["logits", "probabilities"]) {
      if (!session.inputNames.includes("faces") || !session.outputNames.includes(output)) {
        throw new ModelFileError(
          `${name} takes ${session.inputNames} and gives ${session.outputNames}, not faces and logits, ` +
            "probabilities; export the model again with fer-export",
        );
      }
    }
    const model = new FaceModel(ort, session, metadata, { backend, refused });
    if (mustPass) await pass(model);
    return model;
  };
  try {
    return await (mustPass ? withinTime(attempt()) : attempt());
  } catch (error) {
    if (error instanceof ModelFileError) throw error;
    refused.push({ backend, reason: error.message });
    return null;
  }
}

async function pass(model) {
  const test = await model.selfTest();
  if (test?.passed) return;
  await model.release();
  throw new Error(
    test
      ? `the self-test fails: |Δlogit| / (1 + |logit|) ${test.difference.toExponential(1)}, ${test.flips} other labels, ` +
          `unfamiliarity ${test.unfamiliarityDifference.toExponential(1)}`
      : "the file has no certificate to test it with",
  );
}

/** Some drivers neither answer nor fail. */
function withinTime(promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer in ${GPU_SECONDS} seconds`)), 1000 * GPU_SECONDS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/**
 * Faces by YuNet (Wu et al., 2023, MIT) through onnxruntime-web: the decoding of OpenCV's FaceDetectorYN,
 * with the limits and the crop of the Python runtime.
 */

import { ModelFileError, readSource } from "./onnx-file.js";
import { inTurn } from "./runtime.js";

const SCORE = 0.7;
const OVERLAP = 0.3; // intersection over union above which two boxes are one face
const STRIDES = [8, 16, 32];
const BELOW = 0.02; // how far FER2013's crop lies below YuNet's box, in units of its longer side
const MIN_FACE = 24; // smallest side of a face, pixels of the image

export class YuNet {
  #ort;
  #session;
  #fixed = null; // [height, width] of files that take one size only
  #canvas = document.createElement("canvas");

  constructor(ort, session) {
    this.#ort = ort;
    this.#session = session;
  }

  /**
   * @param {string | URL | ArrayBuffer | Uint8Array} source address or content of YuNet's .onnx file
   * @param ort onnxruntime-web, such as a model's `model.ort`
   * @throws {ModelFileError} the file is no YuNet
   */
  static async load(source, ort) {
    const content = await readSource(source);
    let session;
    try {
      // A detector has no self-test that would allow WebGPU.
      const settings = { graphOptimizationLevel: "all", executionProviders: ["wasm"] };
      session = await inTurn(ort, () => ort.InferenceSession.create(content, settings));
    } catch (error) {
      throw new ModelFileError(`the face detector cannot be run here: ${error.message}`, { cause: error });
    }
    const detector = new YuNet(ort, session);
    for (const kind of ["cls", "obj", "bbox", "kps"]) {
      for (const stride of STRIDES) {
        if (!session.outputNames.includes(`${kind}_${stride}`)) {
          throw new ModelFileError(`the face detector is no YuNet: it gives ${session.outputNames}`);
        }
      }
    }
    const shape = session.inputMetadata?.[0]?.shape?.slice(2) ?? [];
    if (shape.length === 2 && shape.every((side) => typeof side === "number" && side > 0)) detector.#fixed = shape;
    return detector;
  }

  /**
   * @param {CanvasImageSource} source image or video frame of `width` x `height` pixels
   * @param {number} longSide pixels that the image is shrunk to before the search
   * @returns {Promise<{box: {x, y, width, height}, roll: number, score: number, landmarks: number[][]}[]>} from left to
   *   right; landmarks are x and y of right eye, left eye, nose and the corners of the mouth
   */
  async detect(source, width, height, longSide = 640) {
    const limit = this.#fixed ? Math.min(...this.#fixed) : longSide;
    const shrink = Math.min(1, limit / Math.max(width, height));
    const [wide, high] = [Math.max(1, Math.round(width * shrink)), Math.max(1, Math.round(height * shrink))];
    const [rows, columns] = this.#fixed ?? [Math.ceil(high / 32) * 32, Math.ceil(wide / 32) * 32];
    Object.assign(this.#canvas, { width: wide, height: high });
    const context = this.#canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(source, 0, 0, wide, high);
    const { data } = context.getImageData(0, 0, wide, high);
    const plane = rows * columns;
    const input = new Float32Array(3 * plane);
    for (let row = 0; row < high; row++) {
      for (let column = 0; column < wide; column++) {
        const [from, to] = [4 * (row * wide + column), row * columns + column];
        input[to] = data[from + 2]; // blue first, as OpenCV
        input[to + plane] = data[from + 1];
        input[to + 2 * plane] = data[from];
      }
    }
    const [name] = this.#session.inputNames;
    const image = new this.#ort.Tensor("float32", input, [1, 3, rows, columns]);
    const answers = await inTurn(this.#ort, () => this.#session.run({ [name]: image }));
    const found = STRIDES.flatMap((stride) => decode(answers, stride, columns));
    return suppress(found)
      .map((face) => toDetection(face, shrink))
      .filter(Boolean)
      .sort((one, other) => one.box.x - other.box.x || one.box.y - other.box.y);
  }
}

function decode(answers, stride, columns) {
  const [isFace, isObject, boxes, points] = ["cls", "obj", "bbox", "kps"].map((kind) => answers[`${kind}_${stride}`].data);
  const clip = (value) => Math.min(Math.max(value, 0), 1);
  const across = columns / stride;
  const faces = [];
  for (let cell = 0; cell < isFace.length; cell++) {
    const score = Math.sqrt(clip(isFace[cell]) * clip(isObject[cell]));
    if (score < SCORE) continue;
    const [column, row] = [cell % across, Math.floor(cell / across)];
    const [dx, dy, logWidth, logHeight] = boxes.subarray(4 * cell, 4 * cell + 4);
    const [width, height] = [Math.exp(logWidth) * stride, Math.exp(logHeight) * stride];
    const point = (index) => [
      (points[10 * cell + 2 * index] + column) * stride,
      (points[10 * cell + 2 * index + 1] + row) * stride,
    ];
    const x = (column + dx) * stride - width / 2;
    const y = (row + dy) * stride - height / 2;
    faces.push({ score, x, y, width, height, points: [0, 1, 2, 3, 4].map(point) });
  }
  return faces;
}

function suppress(faces) {
  const kept = [];
  for (const face of faces.sort((one, other) => other.score - one.score)) {
    if (kept.every((better) => overlap(better, face) <= OVERLAP)) kept.push(face);
  }
  return kept;
}

/** Intersection over union of two boxes. */
export function overlap(one, other) {
  const width = Math.min(one.x + one.width, other.x + other.width) - Math.max(one.x, other.x);
  const height = Math.min(one.y + one.height, other.y + other.height) - Math.max(one.y, other.y);
  if (width <= 0 || height <= 0) return 0;
  return (width * height) / (one.width * one.height + other.width * other.height - width * height);
}

function toDetection({ score, x, y, width, height, points }, shrink) {
  const side = Math.max(width, height) / shrink;
  if (side < MIN_FACE) return null;
  const [[rightX, rightY], [leftX, leftY]] = points;
  return {
    score,
    landmarks: points.map((point) => point.map((value) => value / shrink)),
    roll: (Math.atan2(leftY - rightY, leftX - rightX) * 180) / Math.PI,
    box: {
      x: Math.round((x + width / 2) / shrink - side / 2),
      y: Math.round((y + height / 2) / shrink - side / 2 + BELOW * side),
      width: Math.round(side),
      height: Math.round(side),
    },
  };
}

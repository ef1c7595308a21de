/** The faces of an image or video frame with their probabilities. */

import { prepareFace } from "./face.js";
import { doubtsOf } from "./quality.js";

// Images up to this short side are face crops already, unless they are longer than twice their short side, as banners are.
const CROP_SIDE = 64;
const LONG_SIDE = 640; // pixels that an image is shrunk to before faces are looked for

/** A model with a face detector, or with a frame that somebody places. */
export class Recognizer {
  /**
   * @param {import("./model.js").FaceModel} model
   * @param {null | import("./yunet.js").YuNet} [detector]
   */
  constructor(model, detector = null) {
    this.model = model;
    this.detector = detector;
  }

  /** Whether an image of this size needs a frame that shows its face. */
  needsFrame(width, height) {
    return !this.detector && !isFaceCrop(width, height);
  }

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{longSide?: number, frame?: object}} [how] `frame`: where the face is, without a detector; by default the
   *   middle of the image
   * @returns {Promise<{faces: {box, roll, probabilities: Float32Array, doubts}[], times: {find, crop, classify}}>}
   *   from left to right; `model.answer(probabilities, doubts)` names them; times in ms
   */
  async recognize(canvas, { longSide = LONG_SIDE, frame = null } = {}) {
    const times = {};
    let began = performance.now();
    const lap = (name) => {
      const now = performance.now();
      times[name] = now - began;
      began = now;
    };
    const { width, height } = canvas;
    let detections;
    if (isFaceCrop(width, height)) {
      detections = [{ box: { x: 0, y: 0, width, height }, roll: 0 }];
    } else if (this.detector) {
      detections = await this.detector.detect(canvas, width, height, longSide);
    } else {
      detections = [{ box: frame ?? middleFrame(width, height), roll: 0 }];
    }
    lap("find");
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const image = detections.length ? context.getImageData(0, 0, width, height) : null;
    const prepared = detections.map(({ box, roll }) => prepareFace(image, box, roll, this.model));
    const area = prepared[0]?.length ?? 0;
    const faces = new Uint8Array(prepared.length * area);
    prepared.forEach((face, index) => faces.set(face, index * area));
    lap("crop");
    const count = this.model.labels.length;
    const { probabilities, unfamiliarity } = detections.length ? await this.model.run(faces) : { probabilities: [] };
    const doubts = detections.map((detection, index) =>
      doubtsOf(image, detection, prepared[index], this.model, unfamiliarity?.[index] ?? null),
    );
    lap("classify");
    return {
      times,
      faces: detections.map(({ box, roll }, index) => ({
        box,
        roll,
        probabilities: probabilities.slice(index * count, (index + 1) * count),
        doubts: doubts[index],
      })),
    };
  }
}

/** Whether an image of this size is taken for one face. */
function isFaceCrop(width, height) {
  const side = Math.min(width, height);
  return side <= CROP_SIDE && Math.max(width, height) <= 2 * side;
}

/** The square in the middle of an image. */
export function middleFrame(width, height) {
  const side = Math.round(0.7 * Math.min(width, height));
  return { x: Math.round((width - side) / 2), y: Math.round((height - side) / 2), width: side, height: side };
}

/** Why an answer should not be trusted: the reasons of the Python runtime, with its measures and thresholds. */

import { prepareFace } from "./face.js";

/** In the order in which they are named. */
export const REASONS = ["low_confidence", "turned", "small", "blurred", "dark", "unfamiliar"];

// As fer_runtime/quality.py: where `fer-bench reasons` counts five points less accuracy.
const SMALL_BELOW = 29; // pixels, the shorter side of the face's box
const BLURRED_BELOW = 0.27; // of `sharpness`
const DARK_BELOW = 34; // mean gray level
const TURNED_ABOVE = 0.3; // of `turn`
const SIDE = 48; // pixels of the face that the measures were made for

/**
 * What is known against a face before its confidence is: true or false for each reason, null where nothing is known.
 *
 * @param {{data: ArrayLike<number>, width: number, height: number}} image
 * @param {{box: object, roll?: number, landmarks?: number[][] | null}} detection
 * @param {Uint8Array} face as the model takes it
 * @param {{size: number, color: string, metadata: object}} model
 * @param {number | null} unfamiliarity the model's output of that name
 */
export function doubtsOf(image, { box, roll = 0, landmarks = null }, face, model, unfamiliarity) {
  const isPlane = model.color === "gray" && model.size === SIDE;
  const plane = isPlane ? face : prepareFace(image, box, roll, { size: SIDE, color: "gray" });
  const { level, sharpness } = measure(plane);
  const turned = turn(landmarks);
  const limit = model.metadata.quality?.unfamiliar_above ?? null;
  return {
    turned: turned === null ? null : turned > TURNED_ABOVE,
    small: Math.min(box.width, box.height) < SMALL_BELOW,
    blurred: sharpness < BLURRED_BELOW,
    dark: level < DARK_BELOW,
    // Written as "not <=" so that NaN is unfamiliar.
    unfamiliar: unfamiliarity === null || limit === null ? null : !(unfamiliarity <= limit),
  };
}

/** The reasons among doubts by their names, and those of which nothing is known. */
export function reasonsOf(doubts) {
  return {
    reasons: REASONS.filter((name) => doubts[name] === true),
    notChecked: REASONS.filter((name) => (doubts[name] ?? null) === null),
  };
}

/** How far the nose lies beside the middle of the eyes, in distances between the eyes; null without landmarks. */
function turn(landmarks) {
  if (!landmarks || landmarks.length < 3) return null;
  const [[rightX, rightY], [leftX, leftY], [noseX, noseY]] = landmarks;
  const [across, down] = [leftX - rightX, leftY - rightY];
  const squared = across * across + down * down;
  if (!(squared > 0)) return Infinity; // one eye hides the other: a profile
  return Math.abs((noseX - (rightX + leftX) / 2) * across + (noseY - (rightY + leftY) / 2) * down) / squared;
}

/** Mean gray level; standard deviation of the Laplacian over that of the face. */
function measure(plane) {
  const whole = meanAndDeviation(plane);
  const edges = [];
  for (let row = 1; row < SIDE - 1; row++) {
    for (let at = row * SIDE + 1; at < (row + 1) * SIDE - 1; at++) {
      edges.push(plane[at - 1] + plane[at + 1] + plane[at - SIDE] + plane[at + SIDE] - 4 * plane[at]);
    }
  }
  // An even plane has no contrast to divide by, and is not blurred.
  const sharpness = whole.deviation < 1 ? 1 : meanAndDeviation(edges).deviation / whole.deviation;
  return { level: whole.mean, sharpness };
}

function meanAndDeviation(values) {
  let [sum, squares] = [0, 0];
  for (const value of values) {
    sum += value;
    squares += value * value;
  }
  const mean = sum / values.length;
  return { mean, deviation: Math.sqrt(Math.max(squares / values.length - mean * mean, 0)) };
}

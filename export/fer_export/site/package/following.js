/** Faces that keep their number from frame to frame, and probabilities that do not flicker. */

import { overlap } from "./yunet.js";

const LEAST_OVERLAP = 0.25;
const MAX_GAP = 1; // seconds that a face may be hidden
const TIME_CONSTANT = 0.4; // seconds after which a sudden change has come through by 63 %
const HYSTERESIS = 0.1; // how much more probable another expression must be than the present one

export class Follower {
  #tracks = [];
  #next = 1;

  /**
   * @param {number} time seconds, rising
   * @param {{box: object, probabilities: Float32Array}[]} faces of one frame
   * @returns {{number: number, probabilities: Float32Array, best: number}[]} in the same order
   */
  update(time, faces) {
    this.#tracks = this.#tracks.filter((track) => time - track.time <= MAX_GAP);
    const pairs = this.#tracks
      .flatMap((track) => faces.map((face, index) => ({ track, index, shared: overlap(track.box, face.box) })))
      .filter(({ shared }) => shared >= LEAST_OVERLAP)
      .sort((one, other) => other.shared - one.shared);
    const chosen = new Map();
    const taken = new Set();
    for (const { track, index } of pairs) {
      if (chosen.has(index) || taken.has(track)) continue;
      chosen.set(index, track);
      taken.add(track);
    }
    return faces.map(({ box, probabilities }, index) => {
      let track = chosen.get(index);
      if (track === undefined) {
        track = { number: this.#next++, average: Float32Array.from(probabilities), best: largest(probabilities) };
        this.#tracks.push(track);
      } else {
        const weight = 1 - Math.exp(-(time - track.time) / TIME_CONSTANT);
        track.average = track.average.map((value, at) => value + weight * (probabilities[at] - value));
        const challenger = largest(track.average);
        if (track.average[challenger] > track.average[track.best] + HYSTERESIS) track.best = challenger;
      }
      Object.assign(track, { box, time });
      return { number: track.number, probabilities: track.average, best: track.best };
    });
  }
}

function largest(values) {
  return values.indexOf(Math.max(...values));
}

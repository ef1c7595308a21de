/**
 * From a picture to an expression, in any JavaScript that has onnxruntime-web. Copy this file: it has no
 * imports, and everything that a model needs to be used right it reads from the model file itself.
 *
 *   import * as ort from "./ort/ort.wasm.min.js";
 *   import { FaceModel, prepareFace } from "./face.js";
 *
 *   const model = await FaceModel.load(ort, "model.onnx");
 *   const image = context.getImageData(0, 0, width, height);
 *   const face = prepareFace(image, { x, y, width: side, height: side }, 0, model);
 *   const { expression, probabilities } = await model.classify(face);
 *
 * A face is a Uint8Array of size x size gray values, row by row, 0 black to 255 white; of a model in "rgb", of red,
 * green and blue for each pixel.
 */

const METADATA_KEY = "fer";
const SCHEMA_VERSION = 2; // 1 had `expressions` for `labels`; its faces are 48 x 48 in gray
// Below this many degrees turning changes less than resampling blurs.
const LEAST_ROLL = 5;

/** The model file is missing, damaged or not one of ours. The message is meant for the user. */
export class ModelFileError extends Error {
  name = "ModelFileError";
}

/** A model of any labels. Runs are queued: onnxruntime-web takes one at a time. */
export class FaceModel {
  #ort;
  #session;
  #last = Promise.resolve();

  constructor(ort, session, metadata) {
    this.#ort = ort;
    this.#session = session;
    /** The file's `fer` entry: name, precision, labels, size, color, temperature, certificate ... */
    this.metadata = metadata;
    /** Names in the order of the logits. */
    this.labels = metadata.labels;
    /** Pixels, the side of a face. */
    this.size = metadata.size;
    /** "gray" or "rgb". */
    this.color = metadata.color;
  }

  /**
   * @param ort onnxruntime-web, `import * as ort from ...`
   * @param {string | URL | Uint8Array} source address or content of an .onnx file
   * @throws {ModelFileError}
   */
  static async load(ort, source) {
    const content = source instanceof Uint8Array ? source : await fetchModel(source);
    const name = source instanceof Uint8Array ? "the model" : String(source);
    const metadata = parseMetadata(readMetadataProps(content, name).get(METADATA_KEY), name);
    let session;
    try {
      session = await ort.InferenceSession.create(content, { graphOptimizationLevel: "all" });
    } catch (error) {
      throw new ModelFileError(`${name} cannot be run here: ${error.message}`, { cause: error });
    }
    for (const output of ["logits", "probabilities"]) {
      if (!session.inputNames.includes("faces") || !session.outputNames.includes(output)) {
        throw new ModelFileError(
          `${name} takes ${session.inputNames} and gives ${session.outputNames}, not faces and logits, probabilities; ` +
            "export the model again with fer-export",
        );
      }
    }
    return new FaceModel(ort, session, metadata);
  }

  /**
   * @param {Uint8Array} faces one face, or several one after the other
   * @returns {Promise<{logits: Float32Array, probabilities: Float32Array}>} one value for each label and face
   */
  run(faces) {
    const shape = this.color === "rgb" ? [this.size, this.size, 3] : [this.size, this.size];
    const area = shape.reduce((product, side) => product * side);
    if (!(faces instanceof Uint8Array) || faces.length === 0 || faces.length % area) {
      throw new RangeError(`faces of ${faces?.length} values; each face is a Uint8Array of ${area}`);
    }
    const input = new this.#ort.Tensor("uint8", faces, [faces.length / area, ...shape]);
    const answer = this.#last.then(() => this.#session.run({ faces: input }));
    this.#last = answer.catch(() => {}); // the next run does not fail because this one did
    return answer.then(({ logits, probabilities }) => ({ logits: logits.data, probabilities: probabilities.data }));
  }

  /** The answer for one face: the most probable label, its share, and all of them by name. */
  async classify(face) {
    const { probabilities } = await this.run(face);
    const best = probabilities.indexOf(Math.max(...probabilities));
    return {
      expression: this.labels[best],
      confidence: probabilities[best],
      probabilities: Object.fromEntries(this.labels.map((name, index) => [name, probabilities[index]])),
    };
  }
}

/**
 * The part of a picture inside `box` as a model takes it. The same arithmetic as the Python runtime, so that the same
 * pixels give the same face but for a rounding.
 *
 * @param {ImageData} image
 * @param {{x: number, y: number, width: number, height: number}} [box] pixels; what lies outside the
 *   picture repeats its border. Without it the whole picture is the face.
 * @param {number} [roll] degrees that the face is turned clockwise; it is turned back around the box's centre
 * @param {{size: number, color: string}} [wanted] the model, or its size and color
 * @returns {Uint8Array}
 */
export function prepareFace(
  image,
  box = { x: 0, y: 0, width: image.width, height: image.height },
  roll = 0,
  { size = 48, color = "gray" } = {},
) {
  const planes = (color === "rgb" ? [red, green, blue] : [gray]).map((value) => preparePlane(image, box, roll, size, value));
  if (planes.length === 1) return planes[0];
  const face = new Uint8Array(planes.length * size * size);
  planes.forEach((plane, channel) => plane.forEach((value, at) => (face[planes.length * at + channel] = value)));
  return face;
}

function preparePlane(image, box, roll, size, valueOf) {
  if (Math.abs(roll) < LEAST_ROLL) {
    return resizePlane(cropPlane(image, box, valueOf), size);
  }
  // Half a box more on every side holds every corner of the turned box.
  const { x, y, width, height } = box;
  const around = { x: x - (width >> 1), y: y - (height >> 1), width: 2 * width, height: 2 * height };
  const wide = 2 * size;
  const patch = resizePlane(cropPlane(image, around, valueOf), wide);
  const [cos, sin] = [Math.cos((roll * Math.PI) / 180), Math.sin((roll * Math.PI) / 180)];
  const center = size - 0.5;
  const plane = new Uint8Array(size * size);
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const [dx, dy] = [column + size / 2 - center, row + size / 2 - center];
      plane[row * size + column] = bilinear(patch, wide, center + cos * dx - sin * dy, center + sin * dx + cos * dy);
    }
  }
  return plane;
}

const red = (data, at) => data[at];
const green = (data, at) => data[at + 1];
const blue = (data, at) => data[at + 2];
// OpenCV's weights of red, green and blue in 15-bit fixed point.
const gray = (data, at) => (data[at] * 9798 + data[at + 1] * 19235 + data[at + 2] * 3735 + 16384) >> 15;

/** The key-value pairs of an .onnx file: field 14, `metadata_props`, of ONNX's ModelProto. */
export function readMetadataProps(content, name = "the model") {
  const pairs = new Map();
  try {
    for (const [field, value] of fieldsOf(content)) {
      if (field === 14) {
        const entry = new Map(fieldsOf(value));
        const text = (bytes) => new TextDecoder("utf-8", { fatal: true }).decode(bytes ?? new Uint8Array());
        pairs.set(text(entry.get(1)), text(entry.get(2)));
      }
    }
  } catch (error) {
    throw new ModelFileError(`${name} is damaged or no ONNX model (${error.message})`, { cause: error });
  }
  return pairs;
}

function parseMetadata(text, name) {
  if (text === undefined) {
    throw new ModelFileError(
      `${name} has no "${METADATA_KEY}" metadata, so its labels and input are unknown; export it with fer-export`,
    );
  }
  let metadata;
  try {
    metadata = JSON.parse(text);
  } catch (error) {
    throw new ModelFileError(`${name} has "${METADATA_KEY}" metadata that cannot be read`, { cause: error });
  }
  if (metadata?.schema > SCHEMA_VERSION) {
    throw new ModelFileError(`${name} was written by a newer fer-edge (metadata schema ${metadata.schema})`);
  }
  const { schema, expressions, ...rest } = metadata ?? {};
  const read = schema >= 2 ? { schema, ...rest } : { schema, ...rest, labels: expressions, size: 48, color: "gray" };
  if (!Array.isArray(read.labels) || read.labels.length < 2 || !(read.size > 0) || !["gray", "rgb"].includes(read.color)) {
    throw new ModelFileError(`${name} does not say its labels and its input; export it again with fer-export`);
  }
  return read;
}

async function fetchModel(address) {
  let answer;
  try {
    answer = await fetch(address);
  } catch (error) {
    throw new ModelFileError(`${address} cannot be fetched: ${error.message}`, { cause: error });
  }
  if (!answer.ok) {
    throw new ModelFileError(`${address} cannot be fetched: the server answered ${answer.status}`);
  }
  return new Uint8Array(await answer.arrayBuffer());
}

// Protocol buffers: a field is a varint of number and wire type, then the value.
function* fieldsOf(bytes) {
  let at = 0;
  const varint = () => {
    // Numbers above 2^53 would lose digits; no field that is read here holds one.
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      if (at >= bytes.length || factor > 2 ** 63) throw new RangeError("truncated");
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const [field, wire] = [Math.floor(tag / 8), tag % 8];
    if (field === 0) throw new RangeError("field number 0");
    let length = wire === 1 ? 8 : wire === 5 ? 4 : 0;
    if (wire === 0) {
      yield [field, varint()];
      continue;
    }
    if (wire === 2) length = varint();
    else if (length === 0) throw new RangeError(`wire type ${wire}`);
    if (at + length > bytes.length) throw new RangeError("truncated");
    yield [field, bytes.subarray(at, at + length)];
    at += length;
  }
}

function cropPlane(image, { x, y, width, height }, valueOf) {
  const { data, width: columns, height: rows } = image;
  if (!(width > 0 && height > 0 && x < columns && y < rows && x + width > 0 && y + height > 0)) {
    throw new RangeError(`the box ${x}, ${y}, ${width} x ${height} lies outside the picture`);
  }
  const plane = new Uint8Array(width * height);
  for (let row = 0; row < height; row++) {
    const start = Math.min(Math.max(y + row, 0), rows - 1) * columns;
    for (let column = 0; column < width; column++) {
      plane[row * width + column] = valueOf(data, 4 * (start + Math.min(Math.max(x + column, 0), columns - 1)));
    }
  }
  return { data: plane, width, height };
}

// Shrinking averages the area that each pixel covers; enlarging has nothing to average. As cv2.resize.
function resizePlane(plane, side) {
  if (plane.width === side && plane.height === side) return plane.data;
  const weights = Math.min(plane.width, plane.height) >= side ? areaWeights : linearWeights;
  const [across, down] = [weights(plane.width, side), weights(plane.height, side)];
  const narrow = new Float32Array(side * plane.height);
  for (let row = 0; row < plane.height; row++) {
    for (let column = 0; column < side; column++) {
      let sum = 0;
      for (const [from, share] of across[column]) sum += plane.data[row * plane.width + from] * share;
      narrow[row * side + column] = sum;
    }
  }
  const resized = new Uint8Array(side * side);
  for (let row = 0; row < side; row++) {
    for (let column = 0; column < side; column++) {
      let sum = 0;
      for (const [from, share] of down[row]) sum += narrow[from * side + column] * share;
      resized[row * side + column] = Math.round(sum);
    }
  }
  return resized;
}

function areaWeights(from, to) {
  const scale = from / to;
  return Array.from({ length: to }, (_, index) => {
    const [low, high] = [index * scale, (index + 1) * scale];
    const shares = [];
    for (let at = Math.floor(low); at < Math.min(Math.ceil(high), from); at++) {
      shares.push([at, (Math.min(at + 1, high) - Math.max(at, low)) / scale]);
    }
    return shares;
  });
}

function linearWeights(from, to) {
  return Array.from({ length: to }, (_, index) => {
    const at = Math.min(Math.max(((index + 0.5) * from) / to - 0.5, 0), from - 1);
    const low = Math.min(Math.floor(at), Math.max(from - 2, 0));
    const share = at - low;
    return [
      [low, 1 - share],
      [Math.min(low + 1, from - 1), share],
    ];
  });
}

// `patch` is square; outside it repeats its border.
function bilinear(patch, side, x, y) {
  const [left, top] = [Math.floor(x), Math.floor(y)];
  const [right, below] = [x - left, y - top];
  const inside = (value) => Math.min(Math.max(value, 0), side - 1);
  const value = (column, row) => patch[inside(row) * side + inside(column)];
  return Math.round(
    (value(left, top) * (1 - right) + value(left + 1, top) * right) * (1 - below) +
      (value(left, top + 1) * (1 - right) + value(left + 1, top + 1) * right) * below,
  );
}

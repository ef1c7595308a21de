/** The part of an image that is a face, as a model takes it. No imports; runs wherever JavaScript does. */

// Below this many degrees turning changes less than resampling blurs.
const LEAST_ROLL = 5;

/**
 * The part of an image inside `box` as a model takes it. The same arithmetic as the Python runtime, so that the same
 * pixels give the same face but for a rounding.
 *
 * @param {{data: ArrayLike<number>, width: number, height: number}} image an ImageData, or red, green, blue and alpha
 *   of each pixel
 * @param {{x: number, y: number, width: number, height: number}} [box] pixels; what lies outside the
 *   image repeats its border. Without it the whole image is the face.
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
  box = Object.fromEntries(["x", "y", "width", "height"].map((side) => [side, Math.round(box[side])]));
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

function cropPlane(image, { x, y, width, height }, valueOf) {
  const { data, width: columns, height: rows } = image;
  if (!(width > 0 && height > 0 && x < columns && y < rows && x + width > 0 && y + height > 0)) {
    throw new RangeError(`the box ${x}, ${y}, ${width} x ${height} lies outside the image`);
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

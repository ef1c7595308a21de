/** Does this browser compute what was trained? The golden faces inside a model file, replayed. */

/**
 * @param {import("./face.js").FaceModel} model
 * @returns {Promise<null | {faces, passed, difference, networkDifference, flips}>} null: the file has no certificate.
 *   `difference` is the largest |Δlogit| / (1 + |logit|) from what the file gave at export, `networkDifference` from
 *   PyTorch's logits; a quantised file is meant to differ from PyTorch.
 */
export async function replayCertificate(model) {
  const certificate = model.metadata.certificate;
  if (!certificate?.faces) return null;
  const packed = Uint8Array.from(atob(certificate.faces.zlib_base64), (character) => character.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const faces = new Uint8Array(await new Response(unpacked).arrayBuffer());
  const { logits } = await model.run(faces);
  const expected = certificate.model_logits.flat();
  const difference = furthest(logits, expected);
  const classes = model.labels.length;
  const flips = certificate.model_logits.filter((row, index) => {
    const best = row.indexOf(Math.max(...row));
    const here = logits.subarray(index * classes, (index + 1) * classes);
    return row[best] - row[here.indexOf(Math.max(...here))] > certificate.tolerance.margin;
  }).length;
  return {
    faces: certificate.model_logits.length,
    difference,
    networkDifference: furthest(logits, certificate.network_logits.flat()),
    flips,
    // Written as "<=" on a maximum that keeps NaN, so that a NaN fails.
    passed: difference <= certificate.tolerance.logits && flips === 0,
  };
}

function furthest(actual, expected) {
  if (actual.length !== expected.length) return NaN;
  return expected.reduce((worst, value, index) => {
    const difference = Math.abs(actual[index] - value) / (1 + Math.abs(value));
    return difference > worst || Number.isNaN(difference) ? difference : worst;
  }, 0);
}

/** Does this machine compute what was exported? The golden faces inside a model file, replayed. */

// The loosest tolerances by precision: a file may not decide how well it is tested. As the Python runtime.
const LOOSEST = {
  fp32: { logits: 1e-3, probabilities: 1e-3, margin: 1e-3 },
  fp16: { logits: 2e-2, probabilities: 1e-2, margin: 5e-2 },
  int8: { logits: 0.05, probabilities: 0.03, margin: 0.1 },
};
const LEAST_FACES = 8;

/**
 * @param {import("./model.js").FaceModel} model
 * @returns {Promise<null | {faces, passed, difference, probabilityDifference, unfamiliarityDifference,
 *   networkDifference, flips}>} null: the file has no certificate. `difference` is the largest |Δlogit| / (1 + |logit|)
 *   from what the file gave at export, `unfamiliarityDifference` the same of `unfamiliarity`, `networkDifference` from
 *   PyTorch's logits; a quantized file is meant to differ from PyTorch.
 */
export async function replayCertificate(model) {
  const certificate = model.metadata.certificate;
  if (!certificate?.faces) return null;
  const packed = Uint8Array.from(atob(certificate.faces.zlib_base64), (character) => character.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const faces = new Uint8Array(await new Response(unpacked).arrayBuffer());
  const { logits, probabilities, unfamiliarity } = await model.run(faces);
  const rows = certificate.model_logits;
  const allowed = LOOSEST[model.metadata.precision] ?? LOOSEST.fp16;
  const tolerance = (name) => Math.min(certificate.tolerance[name], allowed[name]);
  const difference = furthest(logits, rows.flat(), (value) => 1 + Math.abs(value));
  const shares = rows.flatMap((row) => softmax(row, model.metadata.temperature ?? 1));
  const probabilityDifference = furthest(probabilities, shares, () => 1);
  // A file without the output has neither; NaN where one of them is missing.
  const unfamiliarityDifference = furthest(
    unfamiliarity ?? [],
    (certificate.model_unfamiliarity ?? []).flat(),
    (value) => 1 + Math.abs(value),
  );
  const classes = model.labels.length;
  const flips = rows.filter((row, index) => {
    const best = row.indexOf(Math.max(...row));
    const here = logits.subarray(index * classes, (index + 1) * classes);
    return row[best] - row[here.indexOf(Math.max(...here))] > tolerance("margin");
  }).length;
  return {
    faces: rows.length,
    difference,
    probabilityDifference,
    unfamiliarityDifference,
    networkDifference: furthest(logits, certificate.network_logits.flat(), (value) => 1 + Math.abs(value)),
    flips,
    // Written as "<=" on maxima that keep NaN, so that a NaN fails.
    passed:
      rows.length >= LEAST_FACES &&
      difference <= tolerance("logits") &&
      probabilityDifference <= tolerance("probabilities") &&
      // A sum of thousands of products, ten times as many as a logit has.
      unfamiliarityDifference <= 10 * tolerance("logits") &&
      flips === 0,
  };
}

function softmax(logits, temperature) {
  const most = Math.max(...logits);
  const powers = logits.map((value) => Math.exp((value - most) / temperature));
  const sum = powers.reduce((one, other) => one + other);
  return powers.map((power) => power / sum);
}

function furthest(actual, expected, scale) {
  if (actual.length !== expected.length) return NaN;
  return expected.reduce((worst, value, index) => {
    const difference = Math.abs(actual[index] - value) / scale(value);
    return difference > worst || Number.isNaN(difference) ? difference : worst;
  }, 0);
}

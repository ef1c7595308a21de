"""`NAME.golden.h`: the golden faces for programs in C and C++."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from fer_runtime.model.certificate import LOOSEST
from fer_runtime.targets.golden import Golden

_PER_LINE = 24

_CHECK = """
/* Largest |difference| / (1 + |logit|) of one face's logits; compare it with fer_golden_tolerance_*. NaN stays NaN. */
static float fer_golden_difference(int face, const float *logits, int quantized) {
  const float *expected = (quantized ? fer_golden_model_logits : fer_golden_network_logits) + face * FER_GOLDEN_CLASSES;
  float worst = 0.0f;
  for (int i = 0; i < FER_GOLDEN_CLASSES; ++i) {
    float size = expected[i] < 0 ? -expected[i] : expected[i];
    float difference = logits[i] < expected[i] ? expected[i] - logits[i] : logits[i] - expected[i];
    difference /= 1.0f + size;
    if (!(difference <= worst)) worst = difference;
    if (worst != worst) break;
  }
  return worst;
}
"""


def golden_header(golden: Golden, *, name: str) -> str:
    """The text of a C header with faces, logits, labels, temperature and the tolerance of each precision.

    Args:
        name: the ONNX file, for the comment.
    """
    count, size = golden.faces.shape[:2]
    channels = 3 if golden.faces.ndim == 4 else 1
    classes = len(golden.labels)
    lines = [
        f"/* Golden faces of {name.replace('*/', '')}, written by fer-export. A runtime that computes the model gives",
        "   these logits within the tolerance of its precision. int8 files are compared with model_logits. */",
        "#ifndef FER_GOLDEN_H",
        "#define FER_GOLDEN_H",
        f"#define FER_GOLDEN_FACES {count}",
        f"#define FER_GOLDEN_SIZE {size}",
        f"#define FER_GOLDEN_CHANNELS {channels}",
        f"#define FER_GOLDEN_CLASSES {classes}",
        f"static const float fer_golden_temperature = {_float(golden.temperature)};",
    ]
    lines += [
        f"static const float fer_golden_tolerance_{precision} = {_float(tolerance.logits)};"
        for precision, tolerance in LOOSEST.items()
    ]
    labels = ", ".join(_c_string(label) for label in golden.labels)
    lines.append(f"static const char *const fer_golden_labels[FER_GOLDEN_CLASSES] = {{{labels}}};")
    pixels = (str(value) for value in golden.faces.ravel().tolist())
    lines += _array("unsigned char", "faces", golden.faces.size, pixels)
    for kind in ("network_logits", "model_logits"):
        values = getattr(golden, kind).ravel().tolist()
        lines += _array("float", kind, len(values), (_float(value) for value in values))
    return "\n".join(lines) + "\n" + _CHECK + "#endif\n"


def _array(kind: str, name: str, count: int, values: Iterable[str]) -> Iterator[str]:
    yield f"static const {kind} fer_golden_{name}[{count}] = {{"
    line: list[str] = []
    for value in values:
        line.append(value)
        if len(line) == _PER_LINE:
            yield ",".join(line) + ","
            line = []
    if line:
        yield ",".join(line) + ","
    yield "};"


def _float(value: float) -> str:
    text = f"{value:.9g}"  # nine digits bring every float32 back exactly
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _c_string(text: str) -> str:
    # UTF-8 in octal: three digits always, so that a digit behind it is not read as part of it.
    quoted = json.dumps(text, ensure_ascii=False)[1:-1]
    return (
        '"'
        + "".join(
            character if character.isascii() else "".join(f"\\{byte:03o}" for byte in character.encode())
            for character in quoted
        )
        + '"'
    )

"""Programs that read ONNX files: one function and one entry each.

`python -m fer_bench.interoperability.readers NAME FILE` runs one reader and prints one JSON object. Each reader has a
process of its own, because some end it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_runtime.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float32]
    Uint8Array = npt.NDArray[np.uint8]

_REFERENCE_FACES = 2  # plain numpy takes a tenth of a second a face


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """An entry: a function of the file and faces that returns logits for the first faces, or none for a mere check."""

    name: str
    read: Callable[[Path, Uint8Array], FloatArray | None]
    needs: str  # the module that it imports, or the program that it runs
    install: str

    @property
    def is_installed(self) -> bool:
        return find_spec(self.needs) is not None or shutil.which(self.needs) is not None


def _check(path: Path, faces: Uint8Array) -> None:
    import onnx

    onnx.checker.check_model(str(path), full_check=True)


def _reference(path: Path, faces: Uint8Array) -> FloatArray:
    import numpy as np
    from onnx.reference import ReferenceEvaluator

    answer: Any = ReferenceEvaluator(str(path)).run(["logits"], {"faces": faces[:_REFERENCE_FACES]})
    logits: FloatArray = np.asarray(answer[0], np.float32)
    return logits


def _onnxruntime(level: str, path: Path, faces: Uint8Array) -> FloatArray:
    from fer_runtime.model.session import create_session, session_options

    options = session_options()
    options.graph_optimization_level = getattr(type(options.graph_optimization_level), level)
    logits: FloatArray = create_session(path.read_bytes(), options).run(["logits"], {"faces": faces})[0]
    return logits


def _openvino(path: Path, faces: Uint8Array) -> FloatArray:
    import numpy as np

    # Importing openvino sends telemetry and writes a device id to the home folder, unless this package is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits: FloatArray = np.array(model({"faces": faces})["logits"])
    return logits


def _opencv(path: Path, faces: Uint8Array) -> FloatArray:
    import cv2
    import numpy as np

    network = cv2.dnn.readNetFromONNX(str(path))
    rows = []
    for face in faces:  # it does not read the dynamic batch of our files
        network.setInput(face[np.newaxis], "faces")
        rows.append(np.asarray(network.forward("logits"), np.float32).reshape(1, -1).copy())
    return np.concatenate(rows)


def _tract(path: Path, faces: Uint8Array) -> FloatArray:
    import numpy as np
    import tract

    model = tract.onnx().load(str(path))
    model.set_input_fact(0, f"{','.join(map(str, faces.shape))},u8")
    logits: FloatArray = np.array(model.into_model().into_runnable().run([faces])[0].to_numpy())
    return logits


def _onnxslim(path: Path, faces: Uint8Array) -> FloatArray:
    import onnx
    import onnxslim

    return _run_bytes(onnxslim.slim(onnx.load(str(path))).SerializeToString(), faces)


def _onnxsim(path: Path, faces: Uint8Array) -> FloatArray:
    import onnx
    import onnxsim

    simplified, agrees = onnxsim.simplify(onnx.load(str(path)))
    if not agrees:
        raise ValueError("onnxsim's own check found other numbers")
    return _run_bytes(simplified.SerializeToString(), faces)


def _run_bytes(content: bytes, faces: Uint8Array) -> FloatArray:
    from fer_runtime.model.session import open_session

    logits: FloatArray = open_session(content, source="the changed model").session.run(["logits"], {"faces": faces})[0]
    return logits


_NODE = """
import { readFileSync } from "node:fs";
import * as ort from "./ort.wasm.bundle.min.mjs";
import { FaceModel } from "./fer-edge/index.js";
ort.env.wasm.wasmBinary = readFileSync("ort-wasm-simd-threaded.wasm");
const model = await FaceModel.load(process.argv[2], { ort, threads: 1 });
const { logits } = await model.run(new Uint8Array(readFileSync("faces.bin")));
console.log(JSON.stringify(Array.from(logits)));
"""


def _onnxruntime_web(path: Path, faces: Uint8Array) -> FloatArray:
    import numpy as np

    from fer_export.site.write import (
        ORT_WEB_INTEGRITY,
        ORT_WEB_VERSION,
        kept_npm_package,
        package_modules,
        read_npm_package,
    )

    package = kept_npm_package("onnxruntime-web", ORT_WEB_VERSION, ORT_WEB_INTEGRITY)
    if package is None:
        raise ValueError(f"needs onnxruntime-web {ORT_WEB_VERSION} from npm: fetch it once with --fetch")
    names = {f"package/dist/{name}" for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in read_npm_package(package, names).items():
            (folder / Path(file).name).write_bytes(content)
        (folder / "fer-edge").mkdir()
        for file, content in {**package_modules(), "package.json": b'{"type": "module"}'}.items():
            (folder / "fer-edge" / file).write_bytes(content)
        (folder / "run.mjs").write_text(_NODE)
        (folder / "faces.bin").write_bytes(faces.tobytes())
        command = ["node", "run.mjs", str(path.resolve())]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        reason = next(
            (line for line in done.stderr.splitlines() if "Error" in line), f"node ended with {done.returncode}"
        )
        raise ValueError(reason.strip())
    logits: FloatArray = np.array(json.loads(done.stdout), np.float32).reshape(len(faces), -1)
    return logits


_BENCH = "pip install 'fer-edge[bench]'"
_LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")

READERS = Registry[Reader](
    "reader",
    Reader(name="onnx.checker, full", read=_check, needs="onnx", install=_BENCH),
    Reader(name="ONNX's reference evaluator", read=_reference, needs="onnx", install=_BENCH),
    *(
        Reader(name=f"ONNX Runtime, {level}", read=partial(_onnxruntime, level), needs="onnxruntime", install=_BENCH)
        for level in _LEVELS
    ),
    Reader(name="OpenVINO", read=_openvino, needs="openvino", install=_BENCH),
    Reader(name="OpenCV dnn, face by face", read=_opencv, needs="cv2", install=_BENCH),
    Reader(
        name="onnxruntime-web, WebAssembly", read=_onnxruntime_web, needs="node", install="install Node.js 20 or later"
    ),
    Reader(name="tract", read=_tract, needs="tract", install="pip install tract"),
    Reader(name="onnxslim, then ONNX Runtime", read=_onnxslim, needs="onnxslim", install="pip install onnxslim"),
    Reader(name="onnxsim, then ONNX Runtime", read=_onnxsim, needs="onnxsim", install="pip install onnxsim"),
)


def _summary(text: str) -> str:
    """The first line of an error, and the last one, which is where tract and onnx name the cause."""
    lines = text.strip().splitlines()
    return " ".join(dict.fromkeys((*lines[:1], *lines[-1:])))[:300]


def main() -> None:
    """Run one reader."""
    import numpy as np

    from fer_runtime.model.certificate import parse_certificate
    from fer_runtime.model.load import load_model

    name, path = sys.argv[1], Path(sys.argv[2])
    certificate = parse_certificate(load_model(path).metadata, source=str(path))
    try:
        logits = READERS[name].read(path, certificate.faces)
    except Exception as error:  # each program has exceptions of its own
        answer: dict[str, Any] = {"error": f"{type(error).__name__}: {_summary(str(error))}"}
    else:
        answer = {"error": None, "faces": 0, "difference": None, "flips": 0}
        if logits is not None:
            expected = certificate.model_logits[: len(logits)]
            answer |= {
                "faces": len(logits),
                "difference": float(np.abs(logits.astype(np.float64) - expected).max()),
                "flips": int((logits.argmax(1) != expected.argmax(1)).sum()),
            }
    # On a line of its own: some programs print.
    print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

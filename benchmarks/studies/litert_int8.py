"""What was tried for LiteRT in int8: v0, quantized by LiteRT's own tool, held against the limits of our int8 files.

python -m benchmarks.studies.litert_int8 --data data

Needs `pip install '.[export,litert]'`, which brings ai-edge-quantizer. The 512 calibration faces are those of
fer-export. Prints the size of each file and what it computes on the validation faces.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fer_runtime.model.parity import Outputs


def recipes() -> dict[str, Callable[[Any], None]]:
    """What is quantized, each as a function that tells a Quantizer. Inputs, outputs and the softmax stay in float."""
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName as Operation

    def static(quantizer: Any, activation_bits: int = 8) -> None:
        quantizer.add_static_config(".*", Operation.ALL_SUPPORTED, activation_bits, 8)
        leave_out(quantizer, Operation.INPUT, Operation.OUTPUT, Operation.SOFTMAX)

    def leave_out(quantizer: Any, *operations: Any) -> None:
        for operation in operations:
            quantizer.update_quantization_recipe(".*", operation, None, AlgorithmName.NO_QUANTIZE)

    def convolutions(quantizer: Any) -> None:
        static(quantizer)
        leave_out(quantizer, Operation.FULLY_CONNECTED, Operation.MUL)

    return {
        "all layers": static,
        "all layers, activations of 16 bits": lambda quantizer: static(quantizer, 16),
        "convolutions": convolutions,
    }


def run_file(path: Path, faces: Any) -> Outputs:
    """The logits and probabilities of a .tflite file of ours."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    runner = interpreter.get_signature_runner()
    answers = [runner(args_0=face[None]) for face in faces]
    return Outputs(
        logits=np.concatenate([answer["output_0"] for answer in answers]),
        probabilities=np.concatenate([answer["output_1"] for answer in answers]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    try:
        compare(data)
    except ModuleNotFoundError as error:
        sys.exit(f"this needs {error.name}, which is not installed; install it with: pip install '.[export,litert]'")


def compare(data: Path) -> None:
    """Print the size of each file and what it computes on the validation faces."""
    from ai_edge_quantizer.quantizer import Quantizer

    from fer_export.gate.accuracy import NUMBER_LIMITS, number_checks
    from fer_export.gate.golden import calibration_faces
    from fer_export.targets.publish import convert_model
    from fer_runtime.model.find import find_model
    from fer_runtime.model.load import load_model
    from fer_runtime.model.parity import run_model
    from fer_train.data.folders import load_faces

    calibration, validation = calibration_faces(load_faces(data, "train")), load_faces(data, "validation")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = find_model("v0", precision="fp32")
        shutil.copy(source, folder)
        (report,) = convert_model("v0", targets=["litert"], models_dir=folder)
        expected = run_model(load_model(source).session, validation.faces)
        for recipe, apply in recipes().items():
            quantizer = Quantizer(str(report.path))
            apply(quantizer)
            ranges = quantizer.calibrate({"serving_default": [{"args_0": face[None]} for face in calibration]})
            path = folder / "quantized.tflite"
            quantizer.quantize(ranges).export_model(str(path), overwrite=True)
            found = run_file(path, validation.faces)
            print(f"{recipe}: {path.stat().st_size / 1e6:.2f} MB")
            for check in number_checks(expected, found, NUMBER_LIMITS["int8"], "ONNX Runtime"):
                print(f"  {check}", flush=True)


if __name__ == "__main__":
    main()

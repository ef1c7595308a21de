"""train/lab.ipynb: its cells run from top to bottom in a process of their own, on made-up images."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from tests.commands import TRAINING, run_python_text
from tests.conftest import CHECKOUT
from tests.train.images import write_images

NOTEBOOK = CHECKOUT / "train" / "lab.ipynb"


def test_every_cell_runs(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 6
    # It is saved as it ran, without the outputs that would carry dataset images into the repository.
    outputs = {"".join(cell["source"]): cell["outputs"] for cell in cells if cell["cell_type"] == "code"}
    shows_faces = [text for text in outputs if "imshow(face" in text or re.search(r"^show\(", text, re.MULTILINE)]
    assert len(shows_faces) == 3
    assert [text for text in shows_faces if outputs[text]] == []
    said = "".join(line for saved in outputs.values() for output in saved for line in output.get("text", []))
    assert re.findall(r"^(v\d): \d", said, re.MULTILINE) == ["v0", "v1"] * 2
    environment = {
        **os.environ,
        "MPLBACKEND": "Agg",
        "FER_EDGE_DATA": str(write_images(tmp_path / "data", train=4, validation=2)),
        "FER_EDGE_CACHE": str(tmp_path / "cache"),
        "FER_EDGE_LAB_MODELS": str(tmp_path / "models"),
        "FER_EDGE_LAB_EPOCHS": "1",
        "FER_EDGE_LAB_NETWORKS": "narrow",  # v0 and v1 take the same cells, and minutes on a busy machine
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]),
    }
    program = "\n\n".join(["import tests.export.narrow", *code])
    run = run_python_text("-c", program, env=environment, cwd=tmp_path, libraries=TRAINING)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "models" / "narrow.onnx").is_file()
    assert "% of the validation images" in run.stdout

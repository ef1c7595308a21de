"""train/lab.ipynb: its cells run from top to bottom in a fresh interpreter, on made-up images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.train.images import write_images

NOTEBOOK = Path(__file__).parents[2] / "train" / "lab.ipynb"


def test_every_cell_runs(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 6
    # Outputs would carry dataset images into the repository.
    assert not any(cell.get("outputs") for cell in cells)
    environment = {
        **os.environ,
        "MPLBACKEND": "Agg",
        "FER_EDGE_DATA": str(write_images(tmp_path / "data", train=20, validation=5)),
        "FER_EDGE_CACHE": str(tmp_path / "cache"),
        "FER_EDGE_LAB_MODELS": str(tmp_path / "models"),
        "FER_EDGE_LAB_EPOCHS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", "\n\n".join(code)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "models" / "model_0.onnx").is_file()
    assert "% of the validation images" in run.stdout

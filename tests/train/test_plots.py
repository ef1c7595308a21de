"""Labels are drawn as they are written."""

from __future__ import annotations

from pathlib import Path

from fer_train.plots import write_plots


def test_a_label_with_dollar_signs_is_no_formula(tmp_path: Path) -> None:
    """As a formula, the second label cannot be drawn."""
    results = {
        "model": "v0",
        "recipe": "test",
        "accuracy": 0.5,
        "macro_f1": 0.5,
        "best_epoch": 1,
        "train_loss": [1.0],
        "test_loss": [1.0],
        "train_acc": [0.5],
        "test_acc": [0.5],
        "expressions": ["5 $", "$\\nothing^{$"],
        "confusion": [[1, 1], [1, 1]],
    }
    curves, confusion = write_plots(results, tmp_path / "mine")
    assert curves.read_bytes().startswith(b"\x89PNG")
    assert confusion.read_bytes().startswith(b"\x89PNG")

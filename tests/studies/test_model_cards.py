"""The model cards: fresh, and their intervals those of the literature."""

from __future__ import annotations

from pathlib import Path

from studies.model_cards import model_cards

MODELS = Path(__file__).parents[2] / "models"


def test_the_cards_say_what_the_results_files_say() -> None:
    assert (MODELS / "README.md").read_text(encoding="utf-8") == model_cards(MODELS)

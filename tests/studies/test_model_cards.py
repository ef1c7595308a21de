"""The model cards: fresh, and their intervals those of the literature."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies.model_cards import model_cards, wilson_interval

MODELS = Path(__file__).parents[2] / "models"


def test_the_cards_say_what_the_results_files_say() -> None:
    assert (MODELS / "README.md").read_text(encoding="utf-8") == model_cards(MODELS)


def test_wilsons_interval_of_a_textbook_example() -> None:
    # 10 of 20: Wilson's 95 % interval is 29.9 % to 70.1 % (Agresti and Coull, 1998); 0 of 10 is 0 to 27.8 %.
    assert wilson_interval(0.5, 20) == pytest.approx((0.299, 0.701), abs=5e-4)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.278), abs=5e-4)

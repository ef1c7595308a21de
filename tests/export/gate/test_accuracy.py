"""How many labels of a right int8 file differ by chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fer_export.gate.accuracy import NumberLimits, most_by_chance, number_checks
from fer_export.gate.parity import as_outputs


@pytest.mark.parametrize("faces", [1, 13, 65, 400])
def test_the_number_that_chance_explains_is_the_binomial_quantile(faces: int) -> None:
    def at_most(count: int) -> float:
        return sum(math.comb(faces, wrong) * 0.014**wrong * 0.986 ** (faces - wrong) for wrong in range(count + 1))

    most = most_by_chance(faces, 0.014)
    assert at_most(most) >= 0.99
    assert most == 0 or at_most(most - 1) < 0.99


@pytest.mark.parametrize(
    ("faces", "other", "passes"),
    # Of 65 faces 0.91 differ on average: more than 3 in 1.5 % of the cases, more than 4 in 0.3 %. Of 1000, 3 % are 30.
    [(65, 4, True), (65, 5, False), (1000, 30, True), (1000, 31, False)],
)
def test_few_faces_may_get_other_labels_as_chance_explains(faces: int, other: int, passes: bool) -> None:
    logits = np.random.default_rng(0).choice([[-1, 1], [1, -1]], faces).astype(np.float32)
    changed = logits.copy()
    changed[:other] = changed[:other, ::-1]
    agreement, *_ = number_checks(as_outputs(logits, 1), as_outputs(changed, 1), NumberLimits())
    assert agreement.name == "agreement"
    assert agreement.passed == passes, agreement.detail
    assert ("or all but 4" in agreement.detail) == (faces == 65)

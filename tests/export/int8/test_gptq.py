"""Rounding of weights against another way to the same numbers."""

from __future__ import annotations

import numpy as np
import torch

from fer_export.int8.gptq import (
    PAIR_LIMIT,
    FloatArray,
    InputStatistics,
    inverse_factor,
    round_weights,
    trim_pairs,
    weight_scales,
)


def _statistics(*parts: FloatArray) -> InputStatistics:
    gathered = InputStatistics(parts[0].shape[1])
    for part in parts:
        gathered.add(part)
    return gathered


def test_the_factor_is_that_of_the_inverse() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 25))
    moments = rows.T @ rows / 40 + 0.1 * np.eye(25)
    factor = inverse_factor(torch.from_numpy(moments)).numpy()
    assert np.allclose(np.tril(factor, -1), 0)
    assert np.allclose(factor.T @ factor, np.linalg.inv(moments))


def test_statistics_are_the_means_over_all_parts() -> None:
    rows = np.random.default_rng(1).normal(size=(30, 4)).astype(np.float32)
    found = _statistics(rows[:10], rows[10:])
    # float32 sums of 30 numbers of size 1 to 10 (epsilon 6e-8), in two orders.
    assert np.allclose(found.means, rows.mean(0), atol=1e-6)
    assert np.allclose(found.second_moments, sum(np.outer(row, row) for row in rows) / 30, atol=1e-5)


def test_a_layers_output_changes_less_than_with_rounding_to_the_nearest() -> None:
    random = np.random.default_rng(2)
    hidden = random.normal(size=(4000, 6))
    inputs = np.maximum(hidden @ random.normal(size=(6, 64)), 0).astype(np.float32)  # as correlated as features are
    weights = random.normal(size=(8, 64)).astype(np.float32)
    scales = np.full(8, 0.3, np.float32)  # coarse, so that errors are large

    def output_error(statistics: bool) -> float:
        integers, correction = round_weights(weights, scales, _statistics(inputs) if statistics else None)
        answer = inputs @ (integers * scales[:, None]).T + correction
        return float(np.mean((answer - inputs @ weights.T) ** 2))

    assert output_error(True) < 0.3 * output_error(False)


def test_the_mean_output_stays() -> None:
    random = np.random.default_rng(3)
    inputs = random.uniform(0, 1, (500, 10)).astype(np.float32)
    weights = random.normal(size=(3, 10)).astype(np.float32)
    scales = np.full(3, 0.5, np.float32)
    integers, correction = round_weights(weights, scales, _statistics(inputs))
    answer = inputs @ (integers * scales[:, None]).T + correction
    # float32 means of 500 sums of 10 products of size 1 (epsilon 6e-8).
    assert np.allclose(answer.mean(0), (inputs @ weights.T).mean(0), atol=1e-4)


def test_scales_leave_room_for_neighbours_of_one_sign_only() -> None:
    alone = weight_scales(np.array([[1.0, -1.0, 0.0]], np.float32))
    together = weight_scales(np.array([[1.0, 1.0, 0.0]], np.float32))
    assert np.allclose(alone, 1 / 127)
    assert np.allclose(together, 2 / (PAIR_LIMIT - 2))


def test_pairs_beyond_the_limit_are_trimmed_and_others_left() -> None:
    trimmed = trim_pairs(np.array([[100, 50, 0, -90, -60, 10], [127, -127, 1, 2, 3, 4]], np.int8))
    sums = trimmed[:, :-1].astype(int) + trimmed[:, 1:]
    same_sign = trimmed[:, :-1].astype(int) * trimmed[:, 1:] > 0
    assert np.abs(sums[same_sign]).max() <= PAIR_LIMIT
    assert trimmed[1].tolist() == [127, -127, 1, 2, 3, 4]
    assert trimmed[0, 1] == 50

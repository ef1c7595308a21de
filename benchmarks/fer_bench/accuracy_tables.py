"""The tables that `fer-bench accuracy` prints: all models, the classes of each, and pairs of models."""

from __future__ import annotations

from collections.abc import Sequence

from fer_bench.accuracy import AccuracyResult, PairedComparison
from fer_bench.statistics import Interval, say_p
from fer_runtime.text import printable


def accuracy_table(results: Sequence[AccuracyResult]) -> str:
    """A line per model, with 95 % intervals."""
    lines = [f"{'model':12} {'accuracy':>22} {'macro-F1':>22} {'calibration error':>22}"]
    for result in results:
        lines.append(
            f"{result.model + ' ' + result.precision:12} {_percent(result.accuracy):>22} "
            f"{_percent(result.macro_f1):>22} {_percent(result.expected_calibration_error):>22}"
        )
    return "\n".join(lines)


def class_table(result: AccuracyResult) -> str:
    """A line per true class of one model: recall, precision, and how many images are predicted as which class."""
    model = f"{result.model} {result.precision}:"
    names = [printable(name, limit=16) for name in result.classes]
    width = max(8, *map(len, names))
    lines = [
        f"{model:10} {'recall':>20} {'precision':>20}   predicted as",
        f"{'':{width + 43}}   " + " ".join(f"{name:>8}" for name in names),
    ]
    for label, name, row in zip(result.classes, names, result.confusion, strict=True):
        recall, precision = _percent(result.per_class_recall[label]), _percent(result.per_class_precision[label])
        counts = " ".join(f"{count:{max(8, len(head))}}" for count, head in zip(row, names, strict=True))
        lines.append(f"  {name:{width}} {recall:>20} {precision:>20}   {counts}")
    return "\n".join(lines)


def comparison_line(pair: PairedComparison) -> str:
    """How two models differ on the same images."""
    return (
        f"{pair.first} and {pair.second}: {pair.changed} predictions differ; only the first is correct on "
        f"{pair.only_first_right}, only the second on {pair.only_second_right}; McNemar p {say_p(pair.p_value)}"
    )


def _percent(interval: Interval) -> str:
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"

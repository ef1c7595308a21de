"""The plots of the report, as inline SVG that follows the reader's light or dark setting.

Colour identifies the model (v0 is always blue) and line style the precision. Every colour is a role of a `Theme`;
`to_svg` turns roles into CSS variables.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter
from matplotlib.transforms import Bbox

from fer_bench.report.data import LatencyRow, ReliabilityBin, label_of
from fer_bench.report.verdict import Candidate, pareto_front, say_megabytes, say_ms
from fer_bench.robustness import CONDITIONS, Condition, RobustnessPoint
from fer_runtime.model.find import MODEL_NAMES
from fer_runtime.text import html_text as escape
from fer_runtime.text import printable

MODEL_ROLES = ("first", "second", "third", "fourth", "fifth")
# Offsets of a label from its point in lines of text, in order of preference.
_LIFTS = (0.6, -0.6, 1.6, -1.6, 2.6, -2.6, 3.6, -3.6)
_LATENCY_EDGE = 2.5  # the latency axis ends at this multiple of the median
_STEADY_BIN = 20  # least faces in a point of a reliability line
_MOST_NAMED = 20  # labels of a confusion matrix whose cells and axes are written on
LINE_STYLES = {"fp32": "-", "int8": (0, (4, 2)), "fp16": (0, (1, 1.5))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """A colour for each role."""

    ink: str
    muted: str
    grid: str
    paper: str
    heat: str  # cells of a confusion matrix, by opacity
    first: str  # v0
    second: str  # v1
    third: str  # v3
    fourth: str
    fifth: str


# First and second differ in lightness and hue, so they stay distinct with any colour vision and in print.
LIGHT = Theme(
    ink="#1b1f24",
    muted="#5b6470",
    grid="#e3e6ea",
    paper="#ffffff",
    heat="#1f4e9c",
    first="#1f6fd1",
    second="#c2410c",
    third="#0f766e",
    fourth="#7e3fb8",
    fifth="#a3195b",
)
DARK = Theme(
    ink="#eef1f5",
    muted="#a3acb8",
    grid="#30363e",
    paper="#16191d",
    heat="#8ab8ff",
    first="#66a8ff",
    second="#ff9a5c",
    third="#4fd1c5",
    fourth="#c79bff",
    fifth="#ff8ac2",
)
# Placeholder colours for matplotlib; `to_svg` replaces them by CSS variables.
_TOKENS = Theme(**{field.name: f"#0{index}fe{index}d" for index, field in enumerate(fields(Theme))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One model's line."""

    label: str
    model: str
    precision: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@contextmanager
def drawing() -> Iterator[Theme]:
    """Set matplotlib's style for figures that become `to_svg`; yields the theme to draw them in."""
    theme = _TOKENS
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # keep text selectable, searchable and accessible
        "svg.hashsalt": "fer-edge",  # reproducible output
        "text.parse_math": False,  # a file name may contain a dollar sign
        "font.family": "DejaVu Sans",
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 11,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.grid,
        "axes.titlecolor": theme.ink,
        "xtick.color": theme.grid,
        "ytick.color": theme.grid,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "grid.color": theme.grid,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 2,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        yield theme


def new_figure(width: int, height: int) -> Figure:
    """An empty figure; sizes in pixels, which are the units of its SVG."""
    layout = ConstrainedLayoutEngine(w_pad=6 / 72, h_pad=6 / 72)
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout=layout)


def model_color(theme: Theme, model: str, models: Sequence[str]) -> str:
    """The colour of `model`: each of our models has its own, others take the next ones in the order of `models`."""
    order = list(dict.fromkeys([*MODEL_NAMES, *models]))
    return str(getattr(theme, MODEL_ROLES[order.index(model) % len(MODEL_ROLES)]))


def draw_tradeoff(points: Sequence[Candidate], *, theme: Theme, width: int = 760, height: int = 400) -> Figure:
    """Accuracy against time per face. A point's area is the file size; filled points are on the Pareto front."""
    figure = new_figure(width, height)
    axes: Axes = figure.add_subplot()
    names = [point.model for point in points]
    times = [point.p50_ms for point in points]
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 1.6, max(times) * 1.6)
    low, high = min(point.low for point in points), max(point.high for point in points)
    pad = max((high - low) * 0.3, 0.02)
    axes.set_ylim(max(low - pad, 0), min(high + pad, 1))
    front = pareto_front(points)
    steps = sorted(
        (point for point in points if not any(_faster_and_better(other, point) for other in points)),
        key=lambda point: point.p50_ms,
    )
    axes.step(
        [point.p50_ms for point in steps] + [max(times) * 1.6],
        [point.accuracy for point in steps] + [steps[-1].accuracy],
        where="post",
        color=theme.muted,
        linewidth=1.2,
        linestyle=(0, (2, 3)),
        zorder=1,
    )
    for point in points:
        color = model_color(theme, point.model, names)
        axes.vlines(point.p50_ms, point.low, point.high, color=color, linewidth=1.2, alpha=0.6, zorder=2)
        axes.scatter(
            point.p50_ms,
            point.accuracy,
            s=_area(point.megabytes),
            facecolor=color if point in front else "none",
            edgecolor=color,
            linewidth=1.6,
            alpha=0.85,
            zorder=3,
        )
    _ms_axis(axes)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel("milliseconds per face, one thread, median (log)")
    axes.set_ylabel("accuracy")
    figure.draw_without_rendering()  # label placement needs the final layout
    _place_labels(axes, points, theme, narrow=width < 600)
    return figure


def _faster_and_better(candidate: Candidate, other: Candidate) -> bool:
    return (
        candidate.p50_ms <= other.p50_ms
        and candidate.accuracy >= other.accuracy
        and (candidate.p50_ms, candidate.accuracy) != (other.p50_ms, other.accuracy)
    )


def _area(megabytes: float) -> float:
    return 40 + 18 * megabytes


def _place_labels(axes: Axes, points: Sequence[Candidate], theme: Theme, *, narrow: bool) -> None:
    """Label each point without touching other labels or points, and crossing as few error bars as possible."""
    line = 32.0 if narrow else 18.0  # height of a label in pixels
    frame = axes.get_window_extent()
    places = {point.label: axes.transData.transform((point.p50_ms, point.accuracy)) for point in points}
    marks, bars = {}, {}
    for point in points:
        x, y = places[point.label]
        reach = _radius(point) + 3
        marks[point.label] = Bbox.from_extents(x - reach, y - reach, x + reach, y + reach)
        ends = [axes.transData.transform((point.p50_ms, value))[1] for value in (point.low, point.high)]
        bars[point.label] = Bbox.from_extents(x - 1, ends[0], x + 1, ends[1])
    placed: list[Bbox] = []
    for point in sorted(points, key=lambda candidate: candidate.accuracy):
        x, y = places[point.label]
        figures = f"{point.accuracy:.1%} · {say_ms(point.p50_ms)} ms · {say_megabytes(point.megabytes)} MB"
        label = axes.annotate(
            f"{point.label}\n{figures}" if narrow else f"{point.label} · {figures}",
            (point.p50_ms, point.accuracy),
            xytext=(0, 0),
            textcoords="offset points",
            va="center",
            fontsize=11,
            color=theme.ink,
            bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5, "alpha": 0.8},
        )
        # The layout is final; labels must not shrink the axes.
        label.set_in_layout(False)
        extent = label.get_window_extent()
        aside = _radius(point) + 8
        prefers_right = bool(x < frame.x0 + 0.55 * frame.width)
        choices: list[tuple[float, float, bool, Bbox]] = []
        for lift, on_right in product(_LIFTS, (prefers_right, not prefers_right)):
            left = x + aside if on_right else x - aside - extent.width
            box = Bbox.from_bounds(left, y + lift * line - extent.height / 2, extent.width, extent.height)
            others = [name for name in places if name != point.label]
            cost = abs(lift) + (0.5 if on_right != prefers_right else 0)
            cost += 100 * sum(box.overlaps(other) for other in placed)
            cost += 100 * (box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1)
            cost += 30 * sum(box.overlaps(marks[name]) for name in others)
            cost += 2 * sum(box.overlaps(bars[name]) for name in others)
            choices.append((cost, lift, on_right, box))
        _, lift, on_right, box = min(choices, key=lambda choice: choice[0])
        placed.append(box)
        label.set_position((aside if on_right else -aside, lift * line))
        label.set_horizontalalignment("left" if on_right else "right")


def _radius(point: Candidate) -> float:
    return math.sqrt(_area(point.megabytes) / math.pi)


def draw_latency(rows: Sequence[LatencyRow], *, theme: Theme, width: int = 760) -> Figure:
    """Distribution of single calls in multiples of each row's median: a line from the minimum to p99."""
    narrow = width < 600
    figure = new_figure(width, 64 + (50 if narrow else 46) * len(rows))
    axes: Axes = figure.add_subplot()
    names = [row.model for row in rows]
    low = min(row.min_ms / row.p50_ms for row in rows)
    # On a busy machine p99 can be ten medians; values beyond the edge are written there.
    edge = min(max(row.p99_ms / row.p50_ms for row in rows), _LATENCY_EDGE)
    room = 0.04 * (edge - low) + 0.01
    for index, row in enumerate(rows):
        color = model_color(theme, row.model, names)
        y = len(rows) - 1 - index
        median = row.p50_ms
        p95, p99 = row.p95_ms / median, row.p99_ms / median
        if row.samples_ms:
            values = np.asarray(row.samples_ms, dtype=np.float64) / median
            _draw_density(axes, values[values <= min(p99, edge)], y, color)
        axes.hlines(y, row.min_ms / median, min(p99, edge + room), color=color, linewidth=1.6)
        axes.hlines(y, 1, min(p95, edge + room), color=color, linewidth=5, alpha=0.55)
        axes.plot(1, y, "o", color=color, markersize=8, markeredgecolor=theme.paper, markeredgewidth=1)
        if p99 <= edge:
            axes.vlines(p99, y - 0.13, y + 0.13, color=color, linewidth=1.6)
        else:
            axes.annotate(
                f"p99 {p99:.0f}× →" if p99 >= 10 else f"p99 {p99:.1f}× →",
                (edge + room, y),
                xytext=(0, 10),
                textcoords="offset points",
                ha="right",
                fontsize=10.5,
                color=theme.muted,
            )
    axes.set_xlim(low - room, edge + room)
    axes.set_ylim(-0.4, len(rows) - 0.25)
    axes.yaxis.set_major_locator(FixedLocator(list(range(len(rows)))))
    separator = "\n" if narrow else " · "
    axes.set_yticklabels([f"{row.label}{separator}{say_ms(row.p50_ms)} ms" for row in reversed(rows)])
    axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 9, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_xlabel("time of a call, as a multiple of the median")
    return figure


def _draw_density(axes: Axes, values: npt.NDArray[np.float64], y: float, color: str) -> None:
    """A histogram on top of the row."""
    if len(values) < 2 or not values.max() > values.min():
        return
    counts, edges = np.histogram(values, bins=min(40, max(8, len(values) // 6)))
    axes.stairs(y + 0.6 * counts / counts.max(), edges, baseline=y, fill=True, color=color, alpha=0.28, linewidth=0)


def draw_reliability(
    bins: Sequence[ReliabilityBin],
    *,
    model: str,
    theme: Theme,
    heading: str,
    width: int = 330,
    height: int = 320,
) -> Figure:
    """Reliability diagram: accuracy against confidence. A calibrated model lies on the diagonal."""
    figure = new_figure(width, height)
    axes: Axes = figure.add_subplot()
    color = model_color(theme, model, [model])
    axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=1, linestyle=(0, (2, 3)))
    most = max((group.faces for group in bins), default=1)
    # A bin with few faces is noise and would make the line jump.
    steady = [group for group in bins if group.faces >= _STEADY_BIN]
    axes.plot(
        [group.confidence for group in steady],
        [group.accuracy for group in steady],
        color=color,
        zorder=2,
    )
    axes.scatter(
        [group.confidence for group in bins],
        [group.accuracy for group in bins],
        s=[16 + 150 * group.faces / most for group in bins],
        color=color,
        alpha=0.7,
        edgecolor=theme.paper,
        zorder=3,
        clip_on=False,
    )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_aspect("equal")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.set_title(heading)
    return figure


def draw_confusion(
    confusion: npt.NDArray[np.int64],
    labels: Sequence[str],
    *,
    theme: Theme,
    heading: str,
    width: int = 360,
    height: int = 372,
) -> Figure:
    """Confusion matrix in per cent of each true class; rows are true, columns predicted."""
    figure = new_figure(width, height)
    axes: Axes = figure.add_subplot()
    axes.set_title(heading, pad=10)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    classes = len(labels)
    letters = 10.5 if classes <= 8 else max(5.0, 84 / classes)
    for row in range(classes):
        for column in range(classes):
            share = float(shares[row, column])
            # Opacity over the background works for light and dark.
            axes.add_patch(
                Rectangle((column, row), 0.96, 0.96, facecolor=theme.heat, alpha=0.05 + 0.95 * share, linewidth=0)
            )
            if classes > _MOST_NAMED:
                continue
            axes.text(
                column + 0.48,
                row + 0.5,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                fontsize=letters,
                fontweight="bold" if row == column else "normal",
                color=theme.paper if share > 0.62 else theme.ink,
            )
    axes.set_xlim(0, classes)
    axes.set_ylim(classes, 0)
    axes.set_aspect("equal")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    named = labels if classes <= _MOST_NAMED else ()
    centres = [index + 0.48 for index in range(len(named))]
    shown = [printable(name, limit=14) for name in named]
    axes.set_xticks(centres, shown, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(centres, shown)
    axes.tick_params(length=0, labelsize=letters, labelcolor=theme.ink)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Accuracy of several models over the levels of one condition."""

    heading: str
    x_label: str
    neutral: float | None  # level that leaves faces unchanged, marked by a thin line
    reverse: bool  # draw the smallest level at the right because it is the worst
    curves: tuple[Curve, ...]
    guessing: float = 1 / 7  # accuracy of random guessing


def draw_curves(panel: Panel, *, theme: Theme, width: int = 330, height: int = 250) -> Figure:
    """One condition."""
    figure = new_figure(width, height)
    axes: Axes = figure.add_subplot()
    curves = panel.curves
    names = [curve.model for curve in curves]
    for curve in curves:
        color = model_color(theme, curve.model, names)
        if curve.low:
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.13, linewidth=0)
        axes.plot(
            curve.x,
            curve.y,
            color=color,
            linestyle=LINE_STYLES.get(curve.precision, "-"),
            marker="o",
            markersize=3.2,
            label=curve.label,
        )
    axes.axhline(panel.guessing, color=theme.muted, linewidth=1, linestyle=(0, (2, 3)))
    if panel.neutral is not None:
        axes.axvline(panel.neutral, color=theme.muted, linewidth=0.8)
    top = max((max(curve.high or curve.y) for curve in curves), default=1.0)
    axes.set_ylim(0, min(math.ceil(top * 10 + 0.3) / 10, 1.0))
    if panel.reverse:
        axes.invert_xaxis()
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(panel.x_label)
    axes.set_title(panel.heading)
    return figure


def robustness_panels(points: Sequence[RobustnessPoint], *, classes: int) -> list[tuple[Condition, Panel]]:
    """The curves of each condition in `points`, of models with so many labels."""
    panels = []
    for condition in CONDITIONS:
        curves = []
        for model, precision in dict.fromkeys((point.model, point.precision) for point in points):
            mine = sorted(
                (
                    point
                    for point in points
                    if (point.model, point.precision, point.condition) == (model, precision, condition.name)
                ),
                key=lambda point: point.level,
            )
            curve = Curve(
                label=label_of(model, precision),
                model=model,
                precision=precision,
                x=tuple(point.level for point in mine),
                y=tuple(point.accuracy for point in mine),
                low=tuple(point.low for point in mine),
                high=tuple(point.high for point in mine),
            )
            curves += [curve] if mine else []
        if curves:
            panel = Panel(
                heading=condition.title,
                x_label=condition.unit,
                neutral=condition.neutral,
                # The worst level is at the right, even if its number is the smallest.
                reverse=condition.levels[0] > condition.levels[-1],
                curves=tuple(curves),
                guessing=1 / classes,
            )
            panels.append((condition, panel))
    return panels


def _ms_axis(axes: Axes) -> None:
    """Ticks at 1, 2 and 5 times each power of ten, without scientific notation."""
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def to_svg(figure: Figure, *, key: str, title: str, description: str) -> str:
    """A figure drawn in `drawing()` as inline SVG with the page's CSS variables for colours and font.

    Args:
        key: unique on the page; prefix of every id in the SVG.
        title: announced by screen readers.
        description: the content of the plot in text, with its figures.
    """
    written = io.StringIO()
    # Without metadata the output is reproducible and contains no address.
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    opening = svg[: svg.index(">") + 1]
    box = re.search(r'viewBox="([^"]+)"', opening)
    assert box, "matplotlib writes a viewBox"
    body = svg[len(opening) : svg.rindex("</svg>")]
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{key}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", body)
    body = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    for field in fields(Theme):
        body = body.replace(getattr(_TOKENS, field.name), f"var(--{field.name})")
    body = re.sub(r"\n\s*", "\n", body).strip()
    width = box[1].split()[2]
    return (
        f'<svg class="plot" viewBox="{box[1]}" style="max-width:{float(width) * 1.15:.0f}px" role="img" '
        f'aria-labelledby="{key}-title {key}-desc"><title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-desc">{escape(description)}</desc>{body}</svg>'
    )


def css_variables(theme: Theme) -> str:
    """A theme as CSS declarations."""
    return " ".join(f"--{field.name}: {getattr(theme, field.name)};" for field in fields(Theme))

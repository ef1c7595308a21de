"""The report as one self-contained HTML page: text, tables and inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from fer_bench.console import SAME_ANSWER
from fer_bench.report.data import ENGINE, LatencyRow, ReportData, label_of
from fer_bench.report.plots import (
    DARK,
    LIGHT,
    MODEL_ROLES,
    css_variables,
    draw_confusion,
    draw_curves,
    draw_latency,
    draw_reliability,
    draw_tradeoff,
    drawing,
    model_color,
    robustness_panels,
    to_svg,
)
from fer_bench.report.verdict import (
    REAL_TIME_MS,
    SIGNIFICANT_P,
    Candidate,
    Verdict,
    decide,
    pareto_front,
    say_megabytes,
    say_ms,
    say_ratio,
)
from fer_bench.robustness import CONDITIONS, RobustnessPoint, clean_accuracy, find_reaches
from fer_bench.statistics import say_p
from fer_runtime.text import html_text as escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE, NARROW = 940, 368  # width in pixels of plots that are drawn for desktop and for phone


def render_page(report: ReportData) -> str:
    """The page's HTML.

    Args:
        report: at least one model with accuracy. Sections without data are left out.
    """
    verdict = decide(report.candidates, report.p_values) if report.candidates else None
    sections = [
        _header(report, verdict),
        _table(report, verdict),
        _tradeoff(report),
        _latency(report),
        _engines(report),
        _confusion(report),
        _reliability(report),
        _robustness(report),
        _environment(report),
    ]
    template = Template(files("fer_bench.report").joinpath("page.html").read_text(encoding="utf-8"))
    title = verdict.headline if verdict else "Benchmark"
    return template.substitute(
        title=escape(f"{title} fer-edge benchmark"),
        light=css_variables(LIGHT),
        dark=css_variables(DARK),
        body="\n".join(section for section in sections if section),
    )


def _header(report: ReportData, verdict: Verdict | None) -> str:
    cpu = str(report.environment.get("cpu", "an unknown processor"))
    kicker = f"fer-edge benchmark · {_day(report.created)} · {cpu}"
    parts = [f'<header><p class="kicker">{escape(kicker)}</p>']
    if verdict is None:
        parts.append("<h1>Benchmark</h1><p>No model has accuracy, time and size, so none is recommended.</p>")
    else:
        parts.append(f'<h1>{escape(verdict.headline)}</h1><p class="lead">{escape(verdict.reason)}</p>')
        parts.append('<div class="cards">')
        parts.append(_card("For most uses", verdict.pick, verdict.pick_reason, pick=True))
        if verdict.lean:
            parts.append(_card("If speed or size decides", verdict.lean, verdict.lean_reason, pick=False))
        parts.append("</div>")
        parts.append(
            '<p class="note">The rule: among models that keep up with a camera '
            f"({say_ms(REAL_TIME_MS)} ms per face), take the fastest one that is not significantly less accurate than "
            f"the best (McNemar's p of {SIGNIFICANT_P:g} or more). Accuracy is measured on "
            f"{report.accuracy[0].images:,} labelled images ({escape(report.data)}); guessing gives 14%.</p>"
        )
    parts += [f'<p class="warning"><strong>Warning:</strong> {escape(warning)}</p>' for warning in report.warnings]
    return "".join(parts) + "</header>"


def _card(kicker: str, candidate: Candidate, text: str, *, pick: bool) -> str:
    figures = (
        ("accuracy", f"{candidate.accuracy:.1%}"),
        ("per face", f"{say_ms(candidate.p50_ms)} ms"),
        ("file", f"{say_megabytes(candidate.megabytes)} MB"),
    )
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
    return (
        f'<section class="card{" pick" if pick else ""}"><p class="kicker">{escape(kicker)}</p>'
        f'<h3>{escape(candidate.label)}</h3><p>{escape(text)}</p><dl class="figures">{items}</dl></section>'
    )


def _table(report: ReportData, verdict: Verdict | None) -> str:
    if not report.accuracy:
        return ""
    front = {candidate.label for candidate in pareto_front(report.candidates)}
    heads = (
        "Model",
        "Accuracy",
        "Macro-F1",
        "Calibration error",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "× roofline",
        "Faces/s",
        "File MB",
        "Memory MB",
        "Cold start ms",
    )
    rows = []
    for row in sorted(report.accuracy, key=lambda row: (-row.accuracy, row.label)):
        latency, fastest = report.headline_latency(row.label), report.best_throughput(row.label)
        tags = '<span class="tag">recommended</span>' if verdict and row.label == verdict.pick.label else ""
        tags += '<span class="tag front">front</span>' if row.label in front else ""
        half = 100 * (row.high - row.low) / 2
        cells = (
            f"{row.accuracy:.1%} <small>±{half:.1f}</small>",
            f"{row.macro_f1:.3f}",
            _or_dash(row.calibration_error, lambda value: f"{value:.3f}"),
            _or_dash(latency.p50_ms if latency else None, say_ms),
            _or_dash(latency.p95_ms if latency else None, say_ms),
            _or_dash(latency.p99_ms if latency else None, say_ms),
            _or_dash(latency.times_roofline if latency else None, lambda value: f"{value:.1f}"),
            f"{fastest.images_per_second:,.0f} <small>batch {fastest.batch}</small>" if fastest else "–",
            _or_dash(report.megabytes.get(row.label), say_megabytes),
            _or_dash(latency.peak_mb if latency else None, lambda value: f"{value:.0f}"),
            _or_dash(latency.cold_start_ms if latency else None, lambda value: f"{value:.0f}"),
        )
        filled = "".join(
            f'<td data-label="{escape(head)}">{cell}</td>' for head, cell in zip(heads[1:], cells, strict=True)
        )
        kind = ' class="pick"' if verdict and row.label == verdict.pick.label else ""
        rows.append(f'<tr{kind}><th scope="row">{escape(row.label)}{tags}</th>{filled}</tr>')
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in heads)
    return (
        '<section><h2>All models</h2><table class="wrap"><caption>Times: one face per call, one thread, ONNX '
        "Runtime. <em>× roofline</em>: median time over the time of the model's arithmetic alone at this core's "
        "measured peak rate. <em>Faces/s</em>: one thread, best batch size. <em>Cold start</em>: CPU time from "
        "process start to the first answer. <em>Front</em>: on the Pareto front of accuracy, speed and "
        f"size.</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{_pairs(report)}</section>"
    )


def _pairs(report: ReportData) -> str:
    """Paired comparison of all models, collapsed."""
    if not report.pairs:
        return ""
    heads = ("Models", "Different predictions", "Only first correct", "Only second correct", "McNemar p")
    rows = []
    for pair in report.pairs:
        p_value = escape(say_p(pair.p_value).removeprefix("= "))
        cells = (pair.changed, pair.only_first_right, pair.only_second_right, p_value)
        filled = "".join(f'<td data-label="{head}">{cell}</td>' for head, cell in zip(heads[1:], cells, strict=True))
        rows.append(f'<tr><th scope="row">{escape(pair.first)} – {escape(pair.second)}</th>{filled}</tr>')
    head = "".join(f'<th scope="col">{title}</th>' for title in heads)
    return (
        "<details><summary>Paired comparison of models</summary>"
        f'<table class="wrap even"><caption>A small p means that the difference is unlikely to be chance. '
        f"The two counts show how large it is.</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></details>"
    )


def _tradeoff(report: ReportData) -> str:
    candidates = report.candidates
    if not candidates:
        return ""
    described = "; ".join(
        f"{candidate.label} {candidate.accuracy:.1%} in {say_ms(candidate.p50_ms)} ms, "
        f"{say_megabytes(candidate.megabytes)} MB"
        for candidate in candidates
    )
    plots = _wide_and_narrow(
        partial(draw_tradeoff, candidates),
        key="tradeoff",
        title="Accuracy against time per face",
        description=described,
    )
    return (
        "<section><h2>Accuracy and time</h2><p>Up is more accurate, left is faster, a smaller disc is a smaller file. "
        "Filled discs are on the Pareto front: no other model is better in all three. The dotted line is the best "
        f"accuracy for a given time. Bars are 95% intervals.</p>{plots}</section>"
    )


def _latency(report: ReportData) -> str:
    rows = [row for row in report.latency if row.engine == ENGINE and row.batch == 1 and row.threads == 1]
    if not rows:
        return ""
    rows.sort(key=lambda row: row.p50_ms)
    described = "; ".join(
        f"{row.label}: median {say_ms(row.p50_ms)}, p99 {say_ms(row.p99_ms)} milliseconds" for row in rows
    )
    plots = _wide_and_narrow(
        partial(draw_latency, rows),
        key="latency",
        title="Distribution of single calls",
        description=described,
    )
    return (
        "<section><h2>Latency distribution</h2><p>Single calls with one face. The dot is the median, the thick bar "
        "ends at the 95th percentile, and the thin line runs from the fastest call to the 99th percentile, with a "
        f"histogram above it. Each row is relative to its own median.</p>{plots}</section>"
    )


def _engines(report: ReportData) -> str:
    """The runtime's engine next to the alternatives, per model."""
    rows = [row for row in report.latency if row.batch == 1 and row.threads == 1]
    if len({row.engine for row in rows}) < 2 and not report.not_measured:
        return ""
    labels = list(dict.fromkeys(row.label for row in report.latency if row.engine == ENGINE))
    lines, has_other_answers = [], False
    for engine in dict.fromkeys(row.engine for row in rows):
        cells = []
        for label in labels:
            base = report.headline_latency(label)
            row = next((other for other in rows if other.engine == engine and other.label == label), None)
            ratio = f"<small>{say_ratio(row.p50_ms / base.p50_ms)}×</small>" if row and base else ""
            text = f"{say_ms(row.p50_ms)} {ratio}" if row else "–"
            if row and (row.difference or 0) > SAME_ANSWER:
                text += f" <small>different answers, up to {row.difference:.2f}</small>"
                has_other_answers = True
            cells.append(f'<td data-label="{escape(label)}">{text}</td>')
        ships = ' <span class="tag">fer-infer</span>' if engine == ENGINE else ""
        lines.append(f'<tr><th scope="row">{escape(engine)}{ships}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
    note = " <em>Different answers</em>: the engine does not compute this model, so its time does not count."
    note = note if has_other_answers else ""
    missing = "".join(f"<li>{escape(text)}</li>" for text in report.not_measured)
    more = f'<p class="note">Not measured here:</p><ul class="note">{missing}</ul>' if missing else ""
    return (
        f"<section><h2>Engines</h2><p>{_say_peers(report, rows)}</p>"
        f'<table class="{_wrap(labels)}"><caption>Median milliseconds per call with one face on one thread, and '
        f"as a multiple of ONNX Runtime's time.{note}</caption>"
        f'<thead><tr><th scope="col">Engine</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>{more}</section>"
    )


def _wrap(columns: Sequence[object]) -> str:
    """CSS classes of a table whose rows become blocks on a phone, in two columns if three would leave a gap."""
    return "wrap even" if len(columns) in (2, 4) else "wrap"


def _say_peers(report: ReportData, rows: Sequence[LatencyRow]) -> str:
    """Speed-up of the fastest file of each model over its PyTorch network."""
    facts = []
    for model in dict.fromkeys(row.model for row in rows):
        torch = next((row for row in rows if row.model == model and row.engine == "torch"), None)
        shipped = min(
            (row for row in rows if row.model == model and row.engine == ENGINE),
            key=lambda row: row.p50_ms,
            default=None,
        )
        if torch and shipped:
            facts.append(f"{shipped.label} {say_ratio(torch.p50_ms / shipped.p50_ms)}×")
    lead = f"Speed-up vs PyTorch eager: {', '.join(facts)}. " if facts else ""
    return escape(f"{lead}All engines took turns in one run, on the same faces.")


def _confusion(report: ReportData) -> str:
    figures = []
    for index, row in enumerate(report.accuracy):
        worst = min(row.per_class_recall, key=lambda name: row.per_class_recall[name])
        described = "Recall of each label: " + ", ".join(
            f"{name} {recall:.0%}" for name, recall in row.per_class_recall.items()
        )
        svg = _plot(
            partial(draw_confusion, row.confusion, row.labels, heading=row.label),
            key=f"confusion{index}",
            title=f"Confusion matrix of {row.label}",
            description=described,
        )
        caption = f"Lowest recall: {worst}, {row.per_class_recall[worst]:.0%}."
        figures.append(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>")
    if not figures:
        return ""
    # Four matrices are easier to compare in two rows of two than as three and one.
    return (
        "<section><h2>Confusion</h2><p>Rows are labels, columns are predictions, in per cent of the row. A perfect "
        f'model has 100 on the diagonal.</p><div class="{_grid(figures)}">'
        f"{''.join(figures)}</div></section>"
    )


def _reliability(report: ReportData) -> str:
    figures = []
    for index, row in enumerate(report.accuracy):
        if not row.reliability:
            continue
        svg = _plot(
            partial(draw_reliability, row.reliability, model=row.model, heading=row.label),
            key=f"reliability{index}",
            title=f"Reliability of {row.label}",
            description="; ".join(
                f"confidence {bar.confidence:.0%}, accuracy {bar.accuracy:.0%} on {bar.faces} faces"
                for bar in row.reliability
            ),
        )
        error = row.calibration_error
        caption = "" if error is None else f"<figcaption>Expected calibration error {error:.3f}.</figcaption>"
        figures.append(f"<figure>{svg}{caption}</figure>")
    if not figures:
        return ""
    return (
        "<section><h2>Calibration</h2><p>On the dotted diagonal, predictions with a confidence of 80% are correct four "
        "times in five. Below it the model is overconfident. A larger dot means more faces.</p>"
        f'<div class="{_grid(figures)}">{"".join(figures)}</div></section>'
    )


def _grid(figures: Sequence[str]) -> str:
    return "grid pairs" if len(figures) in (2, 4) else "grid"


def _robustness(report: ReportData) -> str:
    if not report.robustness:
        return ""
    by_model: dict[tuple[str, str], list[RobustnessPoint]] = {}
    for point in report.robustness:
        by_model.setdefault((point.model, point.precision), []).append(point)
    figures = []
    for condition, panel in robustness_panels(
        report.robustness, classes=len(report.accuracy[0].labels) if report.accuracy else 7
    ):
        described = "; ".join(
            f"{curve.label}: " + ", ".join(f"{x:g} {y:.0%}" for x, y in zip(curve.x, curve.y, strict=True))
            for curve in panel.curves
        )
        svg = _plot(
            partial(draw_curves, panel),
            key=f"robustness-{condition.name}",
            title=f"Accuracy over {condition.title.lower()}",
            description=described,
        )
        figures.append(f"<figure>{svg}</figure>")
    if not figures:
        return ""
    faces = report.robustness[0].faces
    return (
        "<section><h2>Robustness</h2><p>The same "
        f"{faces:,} validation faces, degraded one way at a time. The dotted line is guessing, the thin vertical line "
        "the unchanged face, bands are 95% intervals. Pixels outside the image repeat its border.</p>"
        f'{_legend(list(by_model))}<div class="grid">{"".join(figures)}</div>{_reach_table(by_model)}</section>'
    )


def _legend(keys: Sequence[tuple[str, str]]) -> str:
    names = [model for model, _ in keys]
    dashes = {"int8": "5 3", "fp16": "2 3"}
    roles = {getattr(LIGHT, role): role for role in MODEL_ROLES}
    items = []
    for model, precision in keys:
        role = roles[model_color(LIGHT, model, names)]
        dash = f' stroke-dasharray="{dashes[precision]}"' if precision in dashes else ""
        line = f'<path d="M0 5h30" style="stroke:var(--{role})" stroke-width="2.5"{dash}/>'
        items.append(
            f'<li><svg viewBox="0 0 30 10" aria-hidden="true">{line}</svg>{escape(f"{model} {precision}")}</li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _reach_table(by_model: dict[tuple[str, str], list[RobustnessPoint]]) -> str:
    """The level of each condition at which a tenth of the accuracy is lost."""
    columns: list[tuple[str, dict[str, tuple[float | None, float | None]]]] = []
    for (model, precision), points in by_model.items():
        reference = clean_accuracy(points)
        if reference is not None:
            reaches = {
                reach.condition: (reach.below, reach.above) for reach in find_reaches(points, reference=reference)
            }
            columns.append((label_of(model, precision), reaches))
    if not columns:
        return ""
    rows = []
    for condition in CONDITIONS:
        if not any(condition.name in reaches for _, reaches in columns):
            continue
        cells = "".join(
            f'<td data-label="{escape(label)}">{_say_reach(reaches.get(condition.name))}</td>'
            for label, reaches in columns
        )
        rows.append(
            f'<tr><th scope="row">{escape(condition.title)} <small>{escape(condition.unit)}</small></th>{cells}</tr>'
        )
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label, _ in columns)
    return (
        f'<table class="{_wrap(columns)}"><caption>The level at which a tenth of the accuracy is lost, interpolated '
        f'between the measured levels.</caption><thead><tr><th scope="col">Condition</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _say_reach(reach: tuple[float | None, float | None] | None) -> str:
    if reach is None:
        return "–"
    below, above = reach
    low, high = (None if value is None else f"{value:.1f}".rstrip("0").rstrip(".") for value in reach)
    if below is not None and above is not None:
        return f"{_minus(low)} to {_minus(high)}"
    if above is not None:
        return f"up to {_minus(high)}"
    return f"down to {_minus(low)}" if below is not None else "all measured"


def _minus(number: str | None) -> str:
    return (number or "").replace("-", "\N{MINUS SIGN}")


def _environment(report: ReportData) -> str:
    facts = []
    for key, value in report.environment.items():
        if value in (None, "", [], {}):
            continue
        if key == "peak_rates":
            rates = ((name.partition("_")[0], rate) for name, rate in value.items())
            facts.append(
                ("peak rate of one thread", ", ".join(f"{name} {rate / 1e9:.0f} GMAC/s" for name, rate in rates))
            )
            continue
        if isinstance(value, dict):
            text = ", ".join(f"{name} {entry}" for name, entry in value.items())
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        facts.append((key.replace("_", " "), text))
    # Lines break between words only, not inside an option.
    words = " ".join(f'<span class="word">{escape(word)}</span>' for word in report.command.split(" "))
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return (
        "<section><h2>How this was measured</h2><p>Each latency configuration ran in its own process. The processes "
        "took turns, and each was warmed up before timing. Command:</p>"
        f'<pre><code>{words}</code></pre><dl class="facts">{listed}</dl></section>'
    )


def _plot(draw: Callable[..., Figure], *, key: str, title: str, description: str) -> str:
    """The figure that `draw` returns, as inline SVG."""
    with drawing() as theme:
        return to_svg(draw(theme=theme), key=key, title=title, description=description)


def _wide_and_narrow(draw: Callable[..., Figure], *, key: str, title: str, description: str) -> str:
    """The plot in two widths: scaled down to a phone, the text of a wide plot would be unreadable."""
    figures = []
    for name, width in (("wide", WIDE), ("narrow", NARROW)):
        svg = _plot(partial(draw, width=width), key=f"{key}-{name}", title=title, description=description)
        figures.append(f'<figure class="{name}">{svg}</figure>')
    return "".join(figures)


def _or_dash(value: float | None, say: Callable[[float], str]) -> str:
    return "–" if value is None else say(value)


def _day(created: str) -> str:
    return created.partition("T")[0]

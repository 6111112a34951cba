"""Pictures of results: curves of the serving benchmark, bars of the cloning benchmark, intervals of personalization.

A picture shows two quantities in two panels, not on two axes of one panel. Needs the `bench` extra.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_BLUE, _GREY = "#2563eb", "#9ca3af"
_INCHES = (9, 3.6)

Lines = Sequence[Mapping[str, float]]


def draw_registered(lines: Lines, path: Path) -> None:
    """Draws throughput and first-token time over the number of adapters in the store."""
    figure, (rate_panel, latency_panel) = _panels("Adapters registered", lines[0]["slots"])
    counts = [line["adapters"] for line in lines]
    _curve(rate_panel, counts, [line["value"] for line in lines], title="tokens per second")
    _curve(latency_panel, counts, [line["first_token_ms_p50"] for line in lines], title="first token, median ms")
    _save(figure, path, title="Throughput and first-token time while the store grows")


def draw_working_set(lines: Lines, path: Path) -> None:
    """Draws throughput and first-token time over the number of adapters in use, below and above the slots."""
    figure, (rate_panel, latency_panel) = _panels("Adapters in use", lines[0]["slots"])
    counts = [line["adapters"] for line in lines]
    _curve(rate_panel, counts, [line["tokens_per_second"] for line in lines], title="tokens per second")
    _curve(latency_panel, counts, [line["value"] for line in lines], title="first token, median ms")
    _save(figure, path, title="More adapters in use than slots")


def draw_arrivals(lines: Lines, path: Path) -> None:
    """Draws first-token time and time of a whole reply over the rate of arrivals."""
    figure = Figure(figsize=_INCHES, layout="tight")
    panels = figure.subplots(1, 2)
    for panel, name, title in zip(
        panels, ("first_token", "total"), ("first token, ms", "whole reply, ms"), strict=True
    ):
        rates = [line["arrivals_per_second"] for line in lines]
        for quantile, style in (("p50", "-"), ("p95", "--"), ("p99", ":")):
            values = [line[f"{name}_ms_{quantile}"] for line in lines]
            panel.plot(rates, values, style, marker="o", markersize=4, color=_BLUE, label=quantile)
        panel.set(title=title, xlabel="arrivals per second", ylim=(0, None))
        panel.legend(frameon=False)
        _clean_up(panel)
    _save(figure, path, title="Open loop, Poisson arrivals")


def draw_fine_tuning(lines: Lines, path: Path) -> None:
    """Draws the speed of fine-tuning and of the plain loop."""
    figure = Figure(figsize=_INCHES, layout="tight")
    panel = figure.subplots()
    (line,) = lines
    panel.barh(["AIVO", "plain PEFT loop"], [line["value"], line["baseline"]], color=[_BLUE, _GREY])
    panel.set(xlabel="examples per second")
    _clean_up(panel, axis="x")
    _save(figure, path, title=f"Fine-tuning, {line['ratio']:g} times as fast")


def draw_classes(lines: Lines, path: Path) -> None:
    """Draws how much faster a class is than the same students one after another: steps, and whole clones."""
    figure = Figure(figsize=_INCHES, layout="tight")
    panel = figure.subplots()
    for name, title, color in (
        ("class_steps_of_", "steps of fine-tuning", _GREY),
        ("class_of_", "whole clones", _BLUE),
    ):
        points = [line for line in lines if str(line["figure"]).startswith(name)]
        students, ratios = [line["students"] for line in points], [line["ratio"] for line in points]
        panel.plot(students, ratios, marker="o", color=color, label=title)
    panel.axhline(1, color=_GREY, linewidth=1, linestyle="--")
    panel.set(xlabel="students in the class", ylim=(0, None), xticks=sorted({line["students"] for line in lines}))
    panel.legend(frameon=False)
    _clean_up(panel)
    _save(figure, path, title="Speed of a class, relative to one student after another")


def draw_first_replies(lines: Lines, path: Path) -> None:
    """Draws the seconds to the first personalized reply: the median and the 95th percentile."""
    figure = Figure(figsize=_INCHES, layout="tight")
    panel = figure.subplots()
    names = ["no cached replies", "a classmate with the same answers"]
    for index, (key, label, color) in enumerate((("value", "p50", _BLUE), ("p95", "p95", _GREY))):
        positions = [row + 0.38 * (index - 0.5) for row in range(len(lines))]
        panel.barh(positions, [line[key] for line in lines], height=0.36, color=color, label=label)
    panel.set(xlabel="seconds", yticks=range(len(lines)), yticklabels=names[: len(lines)])
    panel.invert_yaxis()
    panel.legend(frameon=False)
    _clean_up(panel, axis="x")
    _save(figure, path, title="From StartClone to the first personalized reply")


def draw_advantages(students: Lines, path: Path, *, rivals: Sequence[str]) -> None:
    """Draws, for each student, by how much the own adapter is better than each rival, with its interval."""
    figure = Figure(figsize=(_INCHES[0], 0.6 + 0.22 * max(len(students), 8)), layout="tight")
    for panel, rival in zip(figure.subplots(1, len(rivals), sharey=True), rivals, strict=True):
        rows = [(row, student) for row, student in enumerate(reversed(students)) if f"{rival}_ahead" in student]
        values = [student[f"{rival}_ahead"] for _, student in rows]
        below = [student[f"{rival}_ahead"] - student[f"{rival}_low"] for _, student in rows]
        above = [student[f"{rival}_high"] - student[f"{rival}_ahead"] for _, student in rows]
        panel.errorbar(values, [row for row, _ in rows], xerr=(below, above), fmt="o", markersize=4, color=_BLUE)
        panel.axvline(0, color=_GREY, linewidth=1, linestyle="--")
        panel.set_yticks([row for row, _ in rows], [str(student["student"]) for _, student in rows], fontsize=7)
        panel.set(title=f"ahead of {rival.replace('_', ' ')}", xlabel="nats per token")
        panel.spines[["top", "right"]].set_visible(False)
    _save(figure, path, title="Advantage of a student's own adapter on held-out answers")


def _panels(label: str, slots: float) -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=_INCHES, layout="tight")
    left, right = figure.subplots(1, 2)
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.set_xlabel(label)
        panel.axvline(slots, color=_GREY, linewidth=1, linestyle="--")
        panel.annotate(f" {slots:g} slots", (slots, 0.02), xycoords=("data", "axes fraction"), color=_GREY)
    return figure, (left, right)


def _curve(panel: Axes, counts: Sequence[float], values: Sequence[float], *, title: str) -> None:
    panel.plot(counts, values, marker="o", color=_BLUE)
    # The axis starts at zero, so that small differences look small.
    panel.set(title=title, ylim=(0, 1.15 * max(values)))
    panel.set_xticks(counts)
    panel.minorticks_off()
    _clean_up(panel)


def _clean_up(panel: Axes, *, axis: Literal["x", "y"] = "y") -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis=axis, color="#e5e7eb")
    panel.set_axisbelow(True)


def _save(figure: Figure, path: Path, *, title: str) -> None:
    figure.suptitle(title)
    figure.savefig(path, dpi=144)

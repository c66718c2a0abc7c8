"""The picture: a row per kind of prompt, with rate, time to first token and inter-token latency."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from tools.bench.figures import Figures, by_title

COLORS = ("#2563eb", "#f59e0b", "#10b981", "#8b5cf6", "#ef4444", "#64748b", "#06b6d4", "#a16207", "#db2777", "#65a30d")
WIDTH, HEIGHT, DPI = 5.0, 3.4, 130  # of one diagram, in inches
GROUP = 0.8  # share of the distance between groups that the marks take
HEADROOM = 1.15  # above the highest mark
NARROW = 4  # targets, whose figures have room beside each other
DOT: dict[str, Any] = {"fmt": "o", "markersize": 5, "elinewidth": 1.2, "capsize": 2}
SMALL = 8
CAPTION = "#475569"


@dataclass(frozen=True, slots=True)
class Marks:
    """Those of one target, one per concurrency."""

    name: str
    figures: Sequence[Figures]
    places: list[float]
    color: str


@dataclass(frozen=True, slots=True)
class Times:
    name: str
    p50: Callable[[Figures], float | None]
    p95: Callable[[Figures], float | None]


def draw(path: Path, figures: Sequence[Figures], caption: str) -> None:
    """`caption`: the machine and the models."""
    rows = by_title(figures)
    times = times_of(figures)
    size = (WIDTH * (1 + len(times)), HEIGHT * len(rows))
    picture = Figure(figsize=size, layout="constrained")  # no pyplot: no window, no state
    for row, (first, *others) in zip(rows, picture.subplots(len(rows), 1 + len(times), squeeze=False), strict=True):
        marks = arrange(row)
        draw_rates(first, marks)
        for axes, each in zip(others, times, strict=True):
            draw_times(axes, marks, each)
        for axes in (first, *others):
            decorate(axes, row)
    handles, names = picture.axes[0].get_legend_handles_labels()
    picture.legend(handles, names, frameon=False, fontsize=SMALL, loc="outside upper center", ncols=len(names))
    picture.supxlabel(caption, fontsize=SMALL, color=CAPTION)
    picture.savefig(path, dpi=DPI)


def times_of(figures: Sequence[Figures]) -> list[Times]:
    first = Times(figures[0].load.latency, lambda each: each.first_p50, lambda each: each.first_p95)
    gap = Times("gap", lambda each: each.gap_p50, lambda each: each.gap_p95)
    return [first, gap] if any(each.gap_p50 for each in figures) else [first]


def arrange(row: Sequence[Figures]) -> list[Marks]:
    streams = list(dict.fromkeys(each.load.streams for each in row))
    names = list(dict.fromkeys(each.target for each in row))
    marks = []
    for index, name in enumerate(names):
        of_target = [each for each in row if each.target == name]
        offset = (index - (len(names) - 1) / 2) * GROUP / len(names)
        places = [streams.index(each.load.streams) + offset for each in of_target]
        marks.append(Marks(name, of_target, places, COLORS[index % len(COLORS)]))
    return marks


def draw_rates(axes: Axes, marks: Sequence[Marks]) -> None:
    for each in marks:
        known = [pair for pair in zip(each.places, each.figures, strict=True) if pair[1].rate]
        places, rates = [place for place, _ in known], [figure.rate for _, figure in known]
        down = [figure.rate - figure.slowest for _, figure in known]
        up = [figure.fastest - figure.rate for _, figure in known]
        axes.errorbar(places, rates, yerr=[down, up], color=each.color, label=each.name, **DOT)
        label(axes, places, rates, each.color, len(marks))
    unit = marks[0].figures[0].load.unit
    axes.set_ylabel(f"{unit}/s, slowest to fastest round", fontsize=SMALL)


def draw_times(axes: Axes, marks: Sequence[Marks], times: Times) -> None:
    for each in marks:
        known = [
            (place, p50 * 1000, (times.p95(figure) or p50) * 1000)
            for place, figure in zip(each.places, each.figures, strict=True)
            if (p50 := times.p50(figure))
        ]
        places, middles = [place for place, _, _ in known], [p50 for _, p50, _ in known]
        up = [p95 - p50 for _, p50, p95 in known]
        axes.errorbar(places, middles, yerr=[[0.0] * len(up), up], color=each.color, **DOT)
        label(axes, places, middles, each.color, len(marks))
    axes.set_ylabel(f"{times.name} in ms, p50 up to p95", fontsize=SMALL)


def label(axes: Axes, places: Sequence[float], values: Sequence[float], color: str, targets: int) -> None:
    """Figures stand upright where there is no room for them side by side."""
    offset, turned = ((0, -11), 0) if targets <= NARROW else ((0, -8), 90)
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{value:.0f}",
            (place, value),
            offset,
            textcoords="offset points",
            ha="center",
            va="top" if turned else "baseline",
            rotation=turned,
            fontsize=SMALL - 1,
            color=color,
        )


def decorate(axes: Axes, row: Sequence[Figures]) -> None:
    streams = list(dict.fromkeys(each.load.streams for each in row))
    axes.set_title(row[0].load.title, loc="left", fontsize=SMALL + 1)
    axes.set_xticks(range(len(streams)), [f"{each} at once" for each in streams], fontsize=SMALL + 1)
    if axes.texts:  # something is marked
        scale(axes)
    axes.grid(axis="y", color="#e2e8f0", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=SMALL)


def scale(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.5, high * HEADROOM)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())

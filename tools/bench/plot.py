"""The picture: a row per kind of prompt, with rate, time to first token and inter-token latency."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.bench.figures import Figures, by_title

COLORS = ("#2563eb", "#f59e0b", "#10b981", "#8b5cf6", "#ef4444", "#64748b")
WIDTH, HEIGHT, DPI = 5.0, 3.4, 130  # of one diagram, in inches
GROUP = 0.8  # share of the distance between groups that the bars take
HEADROOM = 1.25  # for the legend
SPREAD = {"elinewidth": 1, "ecolor": "#475569", "capsize": 2}
SMALL = 8
CAPTION = "#475569"


@dataclass(frozen=True, slots=True)
class Bars:
    """The bars of one target, one per concurrency."""

    name: str
    figures: Sequence[Figures]
    places: list[float]
    width: float
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
        bars = arrange(row)
        draw_rates(first, bars)
        for axes, each in zip(others, times, strict=True):
            draw_times(axes, bars, each)
        for axes in (first, *others):
            decorate(axes, row)
    picture.supxlabel(caption, fontsize=SMALL, color=CAPTION)
    picture.savefig(path, dpi=DPI)


def times_of(figures: Sequence[Figures]) -> list[Times]:
    first = Times(figures[0].load.latency, lambda each: each.first_p50, lambda each: each.first_p95)
    gap = Times("gap", lambda each: each.gap_p50, lambda each: each.gap_p95)
    return [first, gap] if any(each.gap_p50 for each in figures) else [first]


def arrange(row: Sequence[Figures]) -> list[Bars]:
    streams = list(dict.fromkeys(each.load.streams for each in row))
    names = list(dict.fromkeys(each.target for each in row))
    width = GROUP / len(names)
    bars = []
    for index, name in enumerate(names):
        of_target = [each for each in row if each.target == name]
        offset = (index - (len(names) - 1) / 2) * width
        places = [streams.index(each.load.streams) + offset for each in of_target]
        bars.append(Bars(name, of_target, places, width, COLORS[index % len(COLORS)]))
    return bars


def draw_rates(axes: Axes, bars: Sequence[Bars]) -> None:
    for each in bars:
        rates = [figure.rate for figure in each.figures]
        down = [figure.rate - figure.slowest for figure in each.figures]
        up = [figure.fastest - figure.rate for figure in each.figures]
        drawn = axes.bar(
            each.places, rates, each.width, yerr=[down, up], error_kw=SPREAD, color=each.color, label=each.name
        )
        axes.bar_label(drawn, fmt="{:.0f}", fontsize=SMALL, padding=2)
    unit = bars[0].figures[0].load.unit
    axes.set_ylabel(f"{unit}/s, slowest to fastest round", fontsize=SMALL)
    axes.legend(frameon=False, fontsize=SMALL, loc="upper left", ncols=len(bars))


def draw_times(axes: Axes, bars: Sequence[Bars], times: Times) -> None:
    for each in bars:
        p95 = [milliseconds(times.p95(figure)) for figure in each.figures]
        p50 = [milliseconds(times.p50(figure)) for figure in each.figures]
        axes.bar(each.places, p95, each.width, color=each.color, alpha=0.35)
        drawn = axes.bar(each.places, p50, each.width, color=each.color)
        axes.bar_label(drawn, [f"{value:.0f}" if value else "" for value in p50], fontsize=SMALL, padding=2)
    axes.set_ylabel(f"{times.name} in ms, p50 and in pale p95", fontsize=SMALL)


def milliseconds(seconds: float | None) -> float:
    return 1000 * (seconds or 0)  # no bar without a value


def decorate(axes: Axes, row: Sequence[Figures]) -> None:
    streams = list(dict.fromkeys(each.load.streams for each in row))
    axes.set_title(row[0].load.title, loc="left", fontsize=SMALL + 1)
    axes.set_xticks(range(len(streams)), [f"{each} at once" for each in streams], fontsize=SMALL + 1)
    axes.set_ylim(0, axes.get_ylim()[1] * HEADROOM)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=SMALL)

"""The picture: a row per kind of prompt, the rate on the left, how long the first text takes on the right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.bench.figures import Figures, by_title

COLORS = ("#2563eb", "#f59e0b", "#10b981", "#8b5cf6", "#ef4444", "#64748b")
WIDTH, ROW_HEIGHT, DPI = 11.0, 3.4, 130
GROUP = 0.8  # what the bars of one concurrency take of the distance to the next
HEADROOM = 1.25  # for the legend
SPREAD = {"elinewidth": 1, "ecolor": "#475569", "capsize": 2}
SMALL = 8


@dataclass(frozen=True, slots=True)
class Bars:
    """Of one target, one for each concurrency."""

    name: str
    figures: Sequence[Figures]
    places: list[float]
    width: float
    color: str


def draw(path: Path, figures: Sequence[Figures]) -> None:
    rows = by_title(figures)
    picture = Figure(figsize=(WIDTH, ROW_HEIGHT * len(rows)), layout="constrained")  # no pyplot: no window, no state
    for row, (left, right) in zip(rows, picture.subplots(len(rows), 2, squeeze=False), strict=True):
        bars = arrange(row)
        draw_rates(left, bars)
        draw_latencies(right, bars)
        for axes in (left, right):
            decorate(axes, row)
    picture.savefig(path, dpi=DPI)


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


def draw_latencies(axes: Axes, bars: Sequence[Bars]) -> None:
    for each in bars:
        p95 = [milliseconds(figure.first_p95) for figure in each.figures]
        p50 = [milliseconds(figure.first_p50) for figure in each.figures]
        axes.bar(each.places, p95, each.width, color=each.color, alpha=0.35)
        axes.bar_label(
            axes.bar(each.places, p50, each.width, color=each.color), fmt="{:.0f}", fontsize=SMALL, padding=2
        )
    axes.set_ylabel(f"{bars[0].figures[0].load.latency} in ms, p50 and in pale p95", fontsize=SMALL)


def milliseconds(seconds: float | None) -> float:
    return 1000 * (seconds or 0)  # no bar where nothing came


def decorate(axes: Axes, row: Sequence[Figures]) -> None:
    streams = list(dict.fromkeys(each.load.streams for each in row))
    axes.set_title(row[0].load.title, loc="left", fontsize=SMALL + 1)
    axes.set_xticks(range(len(streams)), [f"{each} at once" for each in streams], fontsize=SMALL + 1)
    axes.set_ylim(0, axes.get_ylim()[1] * HEADROOM)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=SMALL)

"""Aggregates rounds: each figure is computed per round, and the median of the rounds is reported."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from tools.bench.load import Load
from tools.bench.rounds import Round


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one target and load. Times in seconds, of answers without an error."""

    target: str
    load: Load
    rounds: int
    rate: float  # units per second of the round, errors included
    slowest: float
    fastest: float
    first_p50: float | None
    first_p95: float | None
    gap_p50: float | None
    gap_p95: float | None
    units: float  # per answer
    prompt_tokens: float | None
    errors: int


def percentile(values: Iterable[float], share: float) -> float | None:
    """Interpolated linearly, as numpy does it."""
    ordered = sorted(values)
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def add_up(rounds: Iterable[Round]) -> list[Figures]:
    """In the order of the loads and targets."""
    groups: dict[tuple[Load, str], list[Round]] = {}
    for each in rounds:
        if each.counts:
            groups.setdefault((each.load, each.target), []).append(each)
    return [figures(of_both) for of_both in groups.values()]


def figures(rounds: Sequence[Round]) -> Figures:
    """Figures of one target and load."""
    rates = [sum(answer.units for answer in each.answers) / each.seconds for each in rounds]
    good = [[answer for answer in each.answers if not answer.error] for each in rounds]
    firsts = [[answer.first for answer in answers if answer.first is not None] for answers in good]
    gaps = [[gap for answer in answers for gap in answer.gaps] for answers in good]
    every = [answer for answers in good for answer in answers]
    return Figures(
        target=rounds[0].target,
        load=rounds[0].load,
        rounds=len(rounds),
        rate=median(rates),
        slowest=min(rates),
        fastest=max(rates),
        first_p50=middle(percentile(each, 0.5) for each in firsts),
        first_p95=middle(percentile(each, 0.95) for each in firsts),
        gap_p50=middle(percentile(each, 0.5) for each in gaps),
        gap_p95=middle(percentile(each, 0.95) for each in gaps),
        units=middle(answer.units for answer in every) or 0,
        prompt_tokens=middle(answer.prompt_tokens for answer in every),
        errors=sum(answer.error is not None for each in rounds for answer in each.answers),
    )


def by_load(figures: Sequence[Figures]) -> list[list[Figures]]:
    return [list(group) for _, group in groupby(figures, key=lambda each: each.load)]


def by_title(figures: Sequence[Figures]) -> list[list[Figures]]:
    """Groups loads that differ only in concurrency: they share a picture."""
    titles = dict.fromkeys(each.load.title for each in figures)
    return [[each for each in figures if each.load.title == title] for title in titles]

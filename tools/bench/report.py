"""The table in the terminal, and the file with all measurements."""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path

import orjson
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tools.bench.figures import Figures, add_up, by_load, by_title
from tools.bench.rounds import Plan, Round

PACKAGES = ("parley", "torch", "transformers", "aiohttp")
LINE_LENGTH = 160
CPUINFO = Path("/proc/cpuinfo")


def show(rounds: Sequence[Round], console: Console) -> None:
    for of_title in by_title(add_up(rounds)):
        console.print(table(of_title))
    for (target, warm_up, error), count in complaints(rounds).items():
        during = " while warming up" if warm_up else ""
        console.print(f"{target}: {count} x{during}: {error[:LINE_LENGTH]}", style="red", markup=False, highlight=False)


def table(figures: Sequence[Figures]) -> Table:
    load = figures[0].load
    caption = f"Medians of the rounds. Times in ms, p50 / p95. Ratios to {figures[0].target}: of rates, and of p50."
    table = Table(title=load.title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title_justify = table.caption_justify = "left"
    for heading in ["streams", "target", f"{load.unit}/s", "ratio", load.latency, "ratio", "gap", load.unit, "errors"]:
        table.add_column(heading, justify="left" if heading == "target" else "right", no_wrap=True)
    for of_load in by_load(figures):
        for each in of_load:
            table.add_row(*cells(each, of_load[0]))
        table.add_section()
    return table


def cells(each: Figures, first: Figures) -> list[str]:
    return [
        str(each.load.streams),
        each.target,
        f"{each.rate:.1f}",
        ratio(each.rate, first.rate),
        f"{milliseconds(each.first_p50)} / {milliseconds(each.first_p95)}",
        ratio(each.first_p50, first.first_p50),
        f"{milliseconds(each.gap_p50)} / {milliseconds(each.gap_p95)}",
        f"{each.units:.0f}",
        f"[red]{each.errors}[/red]" if each.errors else "0",
    ]


def ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value is not None and base else "-"


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.{1 if seconds < 0.1 else 0}f}"


def complaints(rounds: Sequence[Round]) -> Counter[tuple[str, bool, str]]:
    return Counter(
        (each.target, not each.counts, answer.error) for each in rounds for answer in each.answers if answer.error
    )


def write(path: Path, plan: Plan, rounds: Sequence[Round], machine: dict[str, object]) -> None:
    report = {"machine": machine, "plan": plan, "figures": add_up(rounds), "rounds": rounds}
    path.write_bytes(orjson.dumps(report))


def machine() -> dict[str, object]:
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": round(os.getloadavg()[0], 2),  # before the run: shows whether the machine was idle
        "system": platform.platform(),
        "versions": {"python": platform.python_version()}
        | {each.name: each.version for each in distributions() if each.name in PACKAGES},
    }


def cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not on macOS


def cpu_model() -> str:
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())

"""The picture of a soak test: a curve for each resource over the time."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tools.faults.growth import LIMITS
from tools.faults.resources import Sample, series

TITLES = {
    "rss_mib": "resident memory, MiB",
    "descriptors": "file descriptors",
    "threads": "threads",
    "database_mib": "database, MiB",
    "files": "stored files",
}
WIDTH, HEIGHT, DPI = 8.0, 1.6, 110


def write(samples: Sequence[Sample], path: Path) -> None:
    picture = Figure(figsize=(WIDTH, HEIGHT * len(LIMITS)), layout="constrained")
    minutes = [sample.seconds / 60 for sample in samples]
    rows = picture.subplots(len(LIMITS), 1, squeeze=False, sharex=True)
    for (axes,), name in zip(rows, LIMITS, strict=True):
        axes.plot(minutes, series(list(samples), name), color="#2563eb", linewidth=1)
        axes.set_title(TITLES[name], loc="left", fontsize=8)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    rows[-1][0].set_xlabel("minutes", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=DPI)

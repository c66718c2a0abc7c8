"""The larger models of docs/getting-started.md: commands that are understood, sizes as the service computes them."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.common.settings import EngineSettings
from services.models import hub_names
from services.models.footprint import CACHE_BYTES, Footprint

PAGE = (Path(__file__).parents[2] / "docs" / "getting-started.md").read_text("utf-8")
CONTEXT = 8192  # tokens
PROGRAM = 1.0  # GB of the process without a model
LAYOUT = 0.11  # of the bytes in the file: what Q4_K (5 bits for 4.5) and Q6_K (7 for 6.56) take more in memory
SHAPES = {  # layers, key-value heads, their size
    "Llama-3.2-1B": (16, 8, 64),
    "Qwen3-1.7B": (28, 8, 128),
    "Qwen3-4B": (36, 8, 128),
    "gemma-3-4b": (34, 4, 256),
    "Mistral-7B": (32, 8, 128),
    "Qwen3-8B": (36, 8, 128),
    "Qwen3-14B": (40, 8, 128),
    "Qwen3-32B": (64, 8, 128),
    "Qwen3-30B-A3B": (48, 4, 128),
}


@dataclass(frozen=True, slots=True)
class Row:
    free: float  # GB, as is the rest
    is_gpu: bool
    commands: list[str]
    download: float
    needs: float


def rows() -> list[Row]:
    lines = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if "`parley pull " in line and "|" in line]
    return [
        Row(
            free=float(free.removeprefix("GPU, ").split()[0]),
            is_gpu=free.startswith("GPU"),
            commands=re.findall("`([^`]+)`", commands),
            download=float(download.split()[0]),
            needs=float(needs.split()[0]),
        )
        for free, _, commands, download, needs in lines
    ]


def test_there_is_a_model_for_each_memory() -> None:
    assert len(rows()) == 12


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.commands[0])
def test_the_commands_name_one_model(row: Row) -> None:
    pull, serve = row.commands
    name = pull.removeprefix("parley pull ")
    assert serve == f"parley serve --model {name}"
    assert bool(hub_names.parse(name).variant) is not row.is_gpu


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.commands[0])
def test_the_memory_it_needs_is_what_the_service_computes(row: Row) -> None:
    (shape,) = [shape for name, shape in SHAPES.items() if name in row.commands[0]]
    layers, heads, size = shape
    model = Footprint(int(row.download * 1e9), "?", token=2 * CACHE_BYTES * layers * heads * size)

    def context(gigabytes: float) -> int | None:
        engine = EngineSettings()
        if row.is_gpu:
            return model.context(int(gigabytes * 1e9 * engine.gpu_memory_utilization), 1.0)
        return model.context(int(gigabytes * 1e9), engine.cpu_memory_share)

    assert (context(row.needs + 0.05) or 0) >= CONTEXT  # it is rounded
    assert (context(row.needs - 0.05) or 0) <= CONTEXT
    in_memory = 0 if row.is_gpu else LAYOUT * row.download
    assert row.needs + in_memory + PROGRAM <= row.free

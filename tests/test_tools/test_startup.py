"""Measuring starts, and what a start must not do."""

import subprocess
import sys
from pathlib import Path

from tools.bench.startup import Moment, Start, cpu_seconds, has_text, medians

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "alembic", "pypdf", "matplotlib")


def test_medians_are_of_each_moment() -> None:
    starts = [Start(Moment(n, 10 - n), Moment(2 * n, n)) for n in (1, 9, 3)]
    assert medians(starts) == Start(Moment(3, 7), Moment(6, 3))


def test_cpu_is_that_of_the_process_whatever_its_name() -> None:
    ticks = cpu_seconds("7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 30 20 0 0")
    assert ticks * 2 == cpu_seconds("7 (parley) S 1 7 7 0 -1 0 0 0 0 0 60 40 0 0")


def test_the_first_chunk_has_no_token() -> None:
    assert not has_text(b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n')
    assert not has_text(b"data: [DONE]\n")
    assert has_text(b'data: {"choices": [{"delta": {"content": "Hello"}}]}\n')


def test_the_app_listens_before_anything_heavy_is_imported() -> None:
    """In a process of its own: this one has imported all."""
    code = f"import sys, tools.cli, uvicorn, app.main\nprint(*[each for each in {HEAVY} if each in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "")

"""OpenMP's teams: each thread that ever computed keeps one, and more teams than cores make all of them slow.

libgomp lets the members of a team wait for the next parallel region awake only while there are no more of them than
cores; beyond that they sleep and are woken for each of a step's several hundred regions, which more than doubles a
step. So whoever has nothing to compute lets its team go; it comes back by itself with the next region.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

SOFT = 1  # omp_pause_soft of the OpenMP 5.0 specification


def release_team() -> None:
    """Ends the calling thread's team, in microseconds. Nothing happens with another OpenMP than libgomp."""
    if (gomp := _libgomp()) is not None:
        gomp.omp_pause_resource_all(SOFT)


@cache
def _libgomp() -> Any:
    """The one that torch brings and has loaded."""
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "omp_pause_resource_all"):
            return library
    logger.info("torch runs without libgomp: its threads are left alone")
    return None

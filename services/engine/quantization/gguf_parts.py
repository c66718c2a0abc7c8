"""A GGUF file's configuration and tokenizer, as `transformers` makes them of its metadata.

That takes seconds, so they are kept, in files whose names depend on all that they are made of. A folder that has them
beside its only GGUF file is taken as it is.
"""

import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import Any

import gguf
import numpy as np
import transformers
from filelock import FileLock
from gguf import GGUFReader, GGUFValueType

from services.engine.quantization import gguf_header

logger = logging.getLogger(__name__)

LIST = Struct("<IQ")  # type and number of its values
NOTHING = np.empty(0, np.uint8)

CONFIG, TOKENIZER = "config.json", "tokenizer.json"


def kept_parts(file: Path, folder: Path | None) -> Path | None:
    """None: they cannot be kept."""
    if has_parts(file.parent) and list(file.parent.glob("*.gguf")) == [file]:
        return file.parent
    if folder is None:
        return None
    parts = folder / f"gguf-{_digest(file)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{parts}.lock"):
            if not has_parts(parts):
                _make(file, parts)
    except OSError as error:
        logger.warning("the tokenizer of %s is not kept in %s: %s", file, folder, error)
        return None
    return parts


def has_parts(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / TOKENIZER).is_file()


def write_parts(file: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    with _brief_reader():
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
        AutoConfig.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


class BriefReader(GGUFReader):  # type: ignore[misc]
    """Reads the texts of lists as empty ones. `transformers` makes the configuration of all that this reader has, where
    each text of the vocabulary is an array: seconds, to know how many there are. It reads the tokenizer by itself."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            found: tuple[int, list[Any], list[int], list[GGUFValueType]] = super()._get_field_parts(orig_offs, raw_type)
            return found
        kind, count = LIST.unpack_from(self.data, orig_offs)
        begin = orig_offs + LIST.size
        if kind == GGUFValueType.STRING:
            values, end = [NOTHING] * count, gguf_header.end_of_texts(self.data, begin, count)
        else:
            numbers = self._get(begin, self.gguf_scalar_to_np[GGUFValueType(kind)], count)
            values, end = list(numbers[:, None]), begin + numbers.nbytes
        return end - orig_offs, values, list(range(count)), [GGUFValueType.ARRAY, GGUFValueType(kind)]


@contextmanager
def _brief_reader() -> Iterator[None]:
    """Whoever else opens a file meanwhile has its weights, too."""
    whole = gguf.GGUFReader
    gguf.GGUFReader = BriefReader
    try:
        yield
    finally:
        gguf.GGUFReader = whole


def _make(file: Path, parts: Path) -> None:
    building = parts.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)  # of a process that was killed
    try:
        write_parts(file, building)
        shutil.rmtree(parts, ignore_errors=True)
        os.replace(building, parts)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _digest(file: Path) -> str:
    head = gguf_header.read_file(file).digest
    return hashlib.sha256(f"{head} {transformers.__version__}".encode()).hexdigest()[:16]


if __name__ == "__main__":
    write_parts(Path(sys.argv[1]), Path(sys.argv[2]))

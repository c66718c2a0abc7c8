"""The head of a GGUF file, in milliseconds and without torch: whether the file is complete, its tensors, and the facts
of its metadata."""

import hashlib
import logging
import mmap
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from struct import Struct, error
from typing import BinaryIO

from typing_extensions import Buffer

from services.engine.loading.unusable import UnusableModel

logger = logging.getLogger(__name__)

U32, U64 = Struct("<I"), Struct("<Q")
STRING, ARRAY = 8, 9
NUMBERS = {  # by the type of a value
    kind: Struct(f"<{letter}")
    for kind, letter in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
VERSIONS = (2, 3)
SETTLED_S = 2.0  # a file that was just written may change again within one tick of its clock
ALIGNMENT = 32  # bytes, where the file has no other
SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


_heads: dict[tuple[int, ...], "Head"] = {}  # the last one, by what changes with its file


def check(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UnusableModel(f"{path} is no GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                end = max((tensor.begin + tensor.num_bytes for tensor in head_of(file, data).tensors), default=0)
            except (error, IndexError, KeyError, ValueError):
                raise UnusableModel(f"{path} is not whole, or no GGUF file: its head cannot be read") from None
            if end > len(data):
                raise UnusableModel(f"{path} is not whole: {len(data)} bytes of {end}")


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` as torch has it; `kind`: a GGMLQuantizationType."""

    name: str
    shape: tuple[int, ...]
    kind: int
    begin: int  # in the file
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Head:
    facts: Mapping[str, object]  # numbers and texts; of lists there are none
    tensors: tuple[Tensor, ...]
    digest: str  # of the metadata, the vocabulary included, and of the tensors' names and shapes

    @property
    def architecture(self) -> str:
        return str(self.facts.get("general.architecture", ""))


def read(data: mmap.mmap) -> Head:
    """Raises struct.error, IndexError, KeyError or ValueError for a head that is cut off or damaged."""
    head = _Reader(data)
    version = head.number(U32)
    if version not in VERSIONS:
        raise ValueError(f"version {version} of GGUF")
    num_tensors, num_facts = head.number(U64), head.number(U64)
    facts = dict(head.fact() for _ in range(num_facts))
    found = [head.tensor() for _ in range(num_tensors)]
    alignment = facts.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError("an alignment that is none")
    begin = -(-head.at // alignment) * alignment
    tensors = tuple(replace(tensor, begin=begin + tensor.begin) for tensor in found)
    return Head(facts, tensors, hashlib.sha256(data[: head.at]).hexdigest())


def read_file(path: Path) -> Head:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return head_of(file, data)


def head_of(file: BinaryIO, data: mmap.mmap) -> Head:
    """`data`: the open file, mapped. A start asks for one head six times, and passing over a vocabulary takes 50 ms."""
    facts = os.fstat(file.fileno())
    if time.time() - facts.st_ctime < SETTLED_S:
        return read(data)
    identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    found = _heads.get(identity) or read(data)
    _heads.clear()
    _heads[identity] = found
    return found


def sampling(path: Path) -> dict[str, object]:
    try:
        facts = read_file(path).facts
    except (OSError, error, ValueError, LookupError) as problem:
        logger.warning("the metadata of %s cannot be read, nothing of it is used: %s", path, problem)
        return {}
    return {name: _rounded(facts[key]) for name, key in SAMPLING.items() if key in facts}


def _rounded(value: object) -> object:
    """A 32-bit 0.95 is not to be shown as 0.949999988079071."""
    return round(value, 6) if isinstance(value, float) else value


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.at = 4

    def number(self, form: Struct) -> int:
        (number,) = form.unpack_from(self._data, self.at)
        self.at += form.size
        return int(number)

    def fact(self) -> tuple[str, object]:
        return self._text(), self._value(self.number(U32))

    def tensor(self) -> Tensor:
        """Begins at its offset among the tensors."""
        name = self._text()
        sizes = [self.number(U64) for _ in range(self.number(U32))]
        kind, offset = self.number(U32), self.number(U64)
        return Tensor(name, tuple(reversed(sizes)), kind, offset, _bytes(kind, sizes))

    def _value(self, kind: int) -> object:
        if kind == STRING:
            return self._text()
        if kind == ARRAY:
            self._skip_list(self.number(U32), self.number(U64))
            return None
        form = NUMBERS[kind]
        (number,) = form.unpack_from(self._data, self.at)
        self.at += form.size
        return number

    def _skip_list(self, kind: int, count: int) -> None:
        if kind == STRING:
            self.at = end_of_texts(self._data, self.at, count)
        elif kind == ARRAY:
            for _ in range(count):
                self._skip_list(self.number(U32), self.number(U64))
        else:
            self.at += NUMBERS[kind].size * count
        self._check_end()

    def _text(self) -> str:
        length = self.number(U64)
        begin, self.at = self.at, self.at + length
        self._check_end()
        return self._data[begin : self.at].decode(errors="replace")

    def _check_end(self) -> None:
        if self.at > len(self._data):
            raise ValueError("ends within a value")


def end_of_texts(data: Buffer, at: int, count: int) -> int:
    """A vocabulary has hundreds of thousands."""
    length_at = U64.unpack_from
    for _ in range(count):
        at += U64.size + length_at(data, at)[0]
    return at


def _bytes(kind: int, sizes: list[int]) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    in_block, of_block = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return int(prod(sizes) // in_block * of_block)

"""The head of a GGUF file, without torch: whether the file is complete, and the sampling parameters in its metadata."""

import logging
import mmap
from pathlib import Path
from struct import Struct, error, unpack_from

from services.engine.loading.unusable import UnusableModel

logger = logging.getLogger(__name__)

U32, U64 = Struct("<I"), Struct("<Q")
STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type
VERSIONS = (2, 3)
SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def check(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UnusableModel(f"{path} is no GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                end = _Head(data).end()
            except (error, IndexError, KeyError, ValueError):
                raise UnusableModel(f"{path} is not whole, or no GGUF file: its head cannot be read") from None
            if end > len(data):
                raise UnusableModel(f"{path} is not whole: {len(data)} bytes of {end}")


def sampling(path: Path) -> dict[str, object]:
    from gguf import GGUFReader

    try:
        fields = GGUFReader(path).fields
        return {name: _rounded(fields[key].contents()) for name, key in SAMPLING.items() if key in fields}
    except (OSError, ValueError, LookupError) as error:
        logger.warning("the metadata of %s cannot be read, nothing of it is used: %s", path, error)
        return {}


def _rounded(value: object) -> object:
    """A 32-bit 0.95 is not to be shown as 0.949999988079071."""
    return round(value, 6) if isinstance(value, float) else value


class _Head:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4
        self._alignment = 32

    def end(self) -> int:
        """Of the last tensor, in the file."""
        if self._number(U32) not in VERSIONS:
            raise ValueError("a version of GGUF that nobody reads")
        num_tensors, num_facts = self._number(U64), self._number(U64)
        for _ in range(num_facts):
            self._fact()
        ends = [self._tensor() for _ in range(num_tensors)]
        begin = -(-self._at // self._alignment) * self._alignment
        return begin + max(ends, default=0)

    def _fact(self) -> None:
        name, kind = self._text(), self._number(U32)
        if name == b"general.alignment":
            self._alignment = unpack_from("<I", self._data, self._at)[0]
        self._skip(kind)

    def _skip(self, kind: int) -> None:
        if kind == STRING:
            self._text()
        elif kind == ARRAY:
            inner, count = self._number(U32), self._number(U64)
            if inner in SIZES:
                self._at += SIZES[inner] * count
            else:
                for _ in range(count):
                    self._skip(inner)
        else:
            self._at += SIZES[kind]

    def _tensor(self) -> int:
        """Where it ends, among the tensors."""
        self._text()
        sizes = [self._number(U64) for _ in range(self._number(U32))]
        kind, offset = self._number(U32), self._number(U64)
        return offset + _bytes(kind, sizes)

    def _text(self) -> bytes:
        length = self._number(U64)
        begin, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise ValueError("ends within a text")
        return self._data[begin : self._at] if length < 64 else b""

    def _number(self, form: Struct) -> int:
        (number,) = form.unpack_from(self._data, self._at)
        self._at += form.size
        return int(number)


def _bytes(kind: int, sizes: list[int]) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    in_block, of_block = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    number = 1
    for size in sizes:
        number *= size
    return int(number // in_block * of_block)

"""The tensors of a GGUF file, mapped into memory; what has been read is given back to the kernel."""

import mmap
from math import prod
from pathlib import Path

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from services.engine.quantization import gguf_header
from services.engine.quantization.gguf_header import Tensor as Place

PAGE = mmap.PAGESIZE


class GgufFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # as torch wants memory
            self.head = gguf_header.head_of(file, self._data)

    def tensor(self, place: Place) -> Tensor:
        """Its bytes, uint8 [..., bytes of a row]; not to be written."""
        return torch.from_numpy(self._bytes(place))

    def values(self, place: Place) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        """Its numbers, copied."""
        values: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = np.array(
            dequantize(self._bytes(place), GGMLQuantizationType(place.kind)), dtype=np.float32
        )
        self.release(place)
        return values

    def release(self, place: Place) -> None:
        """The pages count as this process's memory until then. They can be read again."""
        begin, end = -(-place.begin // PAGE) * PAGE, (place.begin + place.num_bytes) // PAGE * PAGE
        if end > begin:
            self._data.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def _bytes(self, place: Place) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        in_block, of_block = GGML_QUANT_SIZES[GGMLQuantizationType(place.kind)]
        flat = np.frombuffer(self._data, dtype=np.uint8, count=place.num_bytes, offset=place.begin)
        row = place.shape[-1] // in_block * of_block
        return flat.reshape(*place.shape[:-1], row) if prod(place.shape) else flat

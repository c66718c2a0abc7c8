"""Asynchronous copies between host and GPU. On the CPU nothing is copied.

Uploads come from pinned memory and are ordered with the kernels already launched; a download is waited for once.
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def pinned(array: NDArray[Any], device: torch.device) -> Tensor:
    """On the host, ready for a `non_blocking` copy; its memory is used again only after that copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    return pinned(array, device).to(device, non_blocking=True)


class Download:
    """Tensors on their way to the host; kernels launched after it need not be waited for."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._arrival = _event() if any(tensor.is_cuda for tensor in tensors) else None
        if self._arrival:
            self._arrival.record(torch.cuda.current_stream(tensors[0].device))

    def result(self) -> list[list[Any]]:
        if self._arrival:
            self._arrival.synchronize()
        return [copy.tolist() for copy in self._copies]


def download(*tensors: Tensor) -> list[list[Any]]:
    """Waits once for all of them."""
    return Download(*tensors).result()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]

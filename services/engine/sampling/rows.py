"""Rows of tensors, selected and written without waiting for the device."""

import numpy as np
from torch import Tensor

from services.engine.device.device_io import upload


def select_rows(tensor: Tensor, rows: list[int]) -> Tensor:
    """Without a copy if they are all of its rows, in order."""
    return tensor if rows == list(range(len(tensor))) else tensor[index(rows, tensor)]


def set_rows(tensor: Tensor, rows: list[int], values: Tensor) -> None:
    tensor.index_copy_(0, index(rows, tensor), values)


def likeliest(scores: Tensor, number: int) -> Tensor:
    """The indices of the largest of each row, in falling order, of equal ones the first; `topk` takes any of these."""
    ids = scores.topk(number, sorted=False).indices.sort(-1).values if number < scores.shape[-1] else None
    found = scores if ids is None else scores.gather(-1, ids)
    order = found.argsort(stable=True, dim=-1, descending=True)
    return order if ids is None else ids.gather(-1, order)


def index(rows: list[int], like: Tensor) -> Tensor:
    return upload(np.array(rows, np.int64), like.device)


def column(values: list[float], like: Tensor) -> Tensor:
    return upload(np.array(values, np.float32), like.device)[:, None]

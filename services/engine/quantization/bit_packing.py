"""Numbers of 2, 3, 4 or 8 bits out of the words of a checkpoint, the lowest bits first."""

from math import gcd

import torch
from torch import Tensor

BYTE = 8
BITS = (2, 3, 4, 8)


def unpack_bits(words: Tensor, bits: int) -> Tensor:
    """[..., words of any integer type] -> uint8 [..., numbers]; one of BITS."""
    data = words.contiguous().view(torch.uint8)
    if bits == BYTE:
        return data
    num_bytes = bits // gcd(bits, BYTE)  # that hold a whole number of them
    if num_bytes > 1:
        whole = data.view(*data.shape[:-1], -1, num_bytes).int()
        data = (whole << torch.arange(0, BYTE * num_bytes, BYTE, dtype=torch.int32)).sum(-1, dtype=torch.int32)
    shifts = torch.arange(0, BYTE * num_bytes, bits, dtype=data.dtype)
    numbers: Tensor = (data[..., None] >> shifts) & (2**bits - 1)
    return numbers.to(torch.uint8).flatten(-2)

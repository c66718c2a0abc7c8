"""Sets the number of threads of torch."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def computing_with(number: int) -> Iterator[None]:
    import torch  # slow to import, and rarely needed

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)

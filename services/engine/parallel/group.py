"""RankGroup: how the processes of one model exchange tensors."""

from typing import Protocol

from torch import Tensor


class GroupAborted(RuntimeError):
    """Another rank is gone, or computes something else."""


class RankGroup(Protocol):
    """All ranks call the same methods in the same order, with tensors of the same shapes."""

    rank: int
    size: int

    def sum(self, values: Tensor) -> Tensor:
        """Over all ranks, with the same bits on each. `values` may be written into."""
        ...

    def gather(self, values: Tensor) -> Tensor:
        """`[..., width]` of each rank -> `[..., size * width]`, in the order of the ranks."""
        ...

    def abort(self) -> None:
        """Ends what is waited for, and all that comes, with GroupAborted. From any thread."""
        ...


class GroupPlan(Protocol):
    """What a rank must know to join. Can be pickled."""

    def join(self, rank: int, size: int) -> RankGroup: ...

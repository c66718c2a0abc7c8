"""A model with the weights of one rank only, in plain tensors and plain layers.

transformers reads each rank's part from the files (as DTensors) and hooks its own communication around the layers. Both
are taken off again here: what is packed, merged and quantised later are linear layers like any other, and sums go
through a RankGroup.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad
from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend "fake"
from transformers.distributed import DistributedConfig

from services.engine.parallel.group import RankGroup
from services.engine.parallel.split import SETTING, style_of
from services.errors import EngineFailed

Wrap = Callable[[Any, RankGroup], nn.Module]


@contextmanager
def reading_shard(rank: int, size: int) -> Iterator[dict[str, Any]]:
    """Yields what `from_pretrained` needs to read one rank's part. Nothing is communicated: torch's process group, of
    which a process has only one, is a fake. For one thread at a time."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield {"distributed_config": DistributedConfig(tp_size=size)}
    finally:
        dist.destroy_process_group()


def read_part(read: Callable[..., Any], group: RankGroup | None) -> Any:
    """What `read` reads with `from_pretrained`, which is given its options; with a group this rank's part of it."""
    if group is None:
        return read()
    with reading_shard(group.rank, group.size) as options:
        model = read(**options)
    localise(model, group)
    return model


class RowwiseLinear(nn.Module):
    """Split by its inputs. `splits`: the inputs come whole, of which this rank takes its part."""

    def __init__(self, linear: nn.Linear, group: RankGroup, *, splits: bool = False) -> None:
        super().__init__()
        self.bias: Tensor | None
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)
        self.linear = linear
        self.linear.register_parameter("bias", None)  # it is added once, not by each rank
        self._group = group
        self._part = slice(group.rank * linear.in_features, (group.rank + 1) * linear.in_features) if splits else None

    def forward(self, inputs: Tensor) -> Tensor:
        out = self._group.sum(self.linear(inputs if self._part is None else inputs[..., self._part]))
        return out if self.bias is None else out + self.bias


class GatheredLinear(nn.Module):
    """Split by its outputs, which all ranks get. The parts of the last ranks may be smaller."""

    def __init__(self, linear: nn.Linear, group: RankGroup, out_features: int) -> None:
        super().__init__()
        self.linear = linear
        self._group = group
        self._out_features = out_features
        self._missing = -(-out_features // group.size) - linear.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        part = self.linear(inputs)
        if self._missing:
            part = pad(part, (0, self._missing))
        return self._group.gather(part)[..., : self._out_features]


class ShardedEmbedding(nn.Module):
    """Split by its tokens: of those that are another rank's, this one has zeros."""

    def __init__(self, embedding: nn.Embedding, group: RankGroup, num_embeddings: int) -> None:
        super().__init__()
        self.embedding = embedding
        self._group = group
        self._start = group.rank * -(-num_embeddings // group.size)
        self._num_here = embedding.num_embeddings

    @property
    def weight(self) -> Tensor:
        """Some models ask it for its device and dtype."""
        return self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        places = ids - self._start
        is_other = (places < 0) | (places >= self._num_here)
        out = self.embedding(places.masked_fill(is_other, 0))
        return self._group.sum(out.masked_fill(is_other[..., None], 0))


def localise(model: Any, group: RankGroup) -> None:
    """Takes a model as `reading_shard` leaves it. Raises EngineFailed for a plan with parts that are not known here."""
    plan: dict[str, str] = model.tp_plan
    if unknown := set(plan.values()) - STYLES.keys():
        raise EngineFailed(f"{SETTING}: {type(model).__name__} is split in a way unknown here ({min(unknown)})")
    sizes = _localise_parameters(model)
    for path, module in list(model.named_modules()):
        style = style_of(path, plan)
        if style is None:
            continue
        module.__dict__.pop("forward", None)  # transformers' own communication
        wrapped = STYLES[style](module, group, sizes.get(path, 0))
        if wrapped is not module:
            model.set_submodule(path, wrapped)


def localised_name(model: nn.Module, name: str) -> str:
    """Of a parameter, by its name in a model in one piece."""
    path, _, leaf = name.rpartition(".")
    match model.get_submodule(path):
        case RowwiseLinear() | GatheredLinear():
            return f"{path}.linear.{leaf}"
        case ShardedEmbedding():
            return f"{path}.embedding.{leaf}"
    return name


def _localise_parameters(model: nn.Module) -> dict[str, int]:
    """Returns how many rows the weights of modules had in one piece, by the module's path."""
    made: dict[int, nn.Parameter] = {}  # tied weights stay tied
    rows = {}
    for path, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                continue
            if name == "weight":
                rows[path] = parameter.shape[0]
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(parameter.to_local().contiguous(), requires_grad=False)
            setattr(module, name, made[id(parameter)])
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        if isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = module.weight.shape
    return rows


# --- what a style does to a module whose parameters are local; `rows`: of its weight in one piece ---


def _unchanged(module: nn.Module, group: RankGroup, rows: int) -> nn.Module:
    return module


def _rowwise(module: nn.Module, group: RankGroup, rows: int) -> nn.Module:
    return RowwiseLinear(module, group) if isinstance(module, nn.Linear) else module


def _splitting(module: nn.Module, group: RankGroup, rows: int) -> nn.Module:
    assert isinstance(module, nn.Linear)
    return RowwiseLinear(module, group, splits=True)


def _gathered(module: nn.Module, group: RankGroup, rows: int) -> nn.Module:
    assert isinstance(module, nn.Linear)
    return GatheredLinear(module, group, rows)


def _embedding(module: nn.Module, group: RankGroup, rows: int) -> nn.Module:
    assert isinstance(module, nn.Embedding)
    return ShardedEmbedding(module, group, rows)


def _summed(module: nn.Module, group: RankGroup, rows: int) -> nn.Module:
    def add_up(module: nn.Module, inputs: object, out: Tensor) -> Tensor:
        return group.sum(out)

    module.register_forward_hook(add_up)
    return module


STYLES: dict[str, Callable[[nn.Module, RankGroup, int], nn.Module]] = {
    "colwise": _unchanged,
    "colwise_gather_output": _gathered,
    "colwise_rep": _gathered,
    "rowwise": _rowwise,
    "rowwise_split_input": _splitting,
    "rowwise_rep": _splitting,
    "packed_colwise": _unchanged,
    "packed_rowwise": _unchanged,
    "embedding_rowwise": _embedding,
    "moe_tp_experts": _summed,
    "all_reduce": _summed,
    # what follows is for gradients, or about parameters alone
    "mla_kv_a_proj": _unchanged,
    "replicated_with_grad_allreduce": _unchanged,
    "replicate": _unchanged,
    "local_params": _unchanged,
}

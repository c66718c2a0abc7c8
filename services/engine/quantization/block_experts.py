"""Experts of a mixture with their weights in blocks, by a kernel of our own (block_experts.h), on the CPU.

`transformers` keeps the weights of a layer's experts in two parameters of three dimensions, and runs modules that have
them by its experts interface (`use_experts_implementation`): products with the experts of each token, the module's own
gate between them. A BlockExperts computes the same with each expert's rows of a step at once, in 4 to 8 bits. No bit of
a token's output depends on which other tokens there are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from services.engine.execution.model_structure import language_modules
from services.engine.quantization.quantized_blocks import BlockFormat, BlockSource, PackedExperts, pack_experts

KERNELS: tuple[Path, ...] = ()  # part of block_layers'

GATE_UP, UP, DOWN = "gate_up_proj", "up_proj", "down_proj"  # as transformers names the parameters

Sources = Sequence[BlockSource]  # of all experts


@dataclass(frozen=True, slots=True)
class ExpertSources:
    """The weights of one layer's experts. `up`: of the first product, in the order of its outputs: gates and ups, or
    both in one."""

    up: Sequence[Sources]
    down: Sources


class ExpertProduct(nn.Module):
    """[tokens, inputs] and the experts [tokens, choices] of each -> [tokens, choices, outputs]"""

    def __init__(self, packed: PackedExperts, bias: Tensor | None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.codes: Tensor
        self.scales: Tensor
        self.bias: Tensor | None
        self.register_buffer("codes", packed.codes, persistent=False)
        self.register_buffer("scales", packed.scales, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float().contiguous(), persistent=False)
        self.inputs, self.outputs = packed.inputs, packed.outputs
        self.format, self.factor = packed.format, packed.factor
        self._dtype = dtype

    @property
    def num_weights(self) -> int:
        return len(self.codes) * self.outputs * self.inputs

    def forward(self, rows: Tensor, experts: Tensor) -> Tensor:
        form = self.format
        arguments = (self.outputs, form.bits, form.group, form.minima, form.zero, self.factor, self._dtype)
        out: Tensor = torch.ops.parley.quantized_experts(rows, experts, self.codes, self.scales, self.bias, *arguments)
        return out


class BlockExperts(nn.Module):
    """Takes the place of a module that `can_replace_experts` knows, which it keeps, without weights, for its gate."""

    def __init__(self, experts: Any, sources: ExpertSources) -> None:
        super().__init__()
        self.num_experts = len(sources.down)
        name = GATE_UP if experts.has_gate else UP
        bias = getattr(experts, f"{name}_bias", None) if experts.has_bias else None
        self.up = nn.ModuleList(_up_products(sources.up, bias))
        down_bias = getattr(experts, f"{DOWN}_bias", None) if experts.has_bias else None
        self.down = ExpertProduct(pack_experts([[each] for each in sources.down]), down_bias, torch.float32)
        self.shell = _without_weights(experts)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        parts = [product(hidden_states, top_k_index) for product in self.up]
        up = (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).flatten(0, 1)
        inner = self.shell._apply_gate(up) if self.shell.has_gate else self.shell.act_fn(up)
        out = self.down(inner, top_k_index.reshape(-1, 1)).view(*top_k_index.shape, -1)
        if self.shell.has_post_expert_norm:
            out = self.shell.post_expert_norm(out)
        combined: Tensor = torch.ops.parley.combine_experts(out, top_k_weights, hidden_states.dtype)
        return combined


def can_replace_experts(module: nn.Module) -> bool:
    """Whether it is run by transformers' experts interface, with its weights as they are."""
    weights = [getattr(module, name, None) for name in (first_weight(module), DOWN)]
    has_weights = all(isinstance(each, nn.Parameter) and each.dim() == 3 for each in weights)
    return has_weights and hasattr(module, "is_transposed")


def first_weight(module: nn.Module) -> str:
    """The name of the parameter of its first product."""
    return GATE_UP if getattr(module, "has_gate", True) else UP


def made_of(experts: Any, up: Callable[[Tensor], BlockSource], down: Callable[[Tensor], BlockSource]) -> ExpertSources:
    """Of its own weights; `up` and `down` are called with each expert's [outputs, inputs]."""

    def each(weights: Tensor, source: Callable[[Tensor], BlockSource]) -> list[BlockSource]:
        return [source(weight.T if experts.is_transposed else weight) for weight in weights.detach()]

    return ExpertSources([each(getattr(experts, first_weight(experts)), up)], each(experts.down_proj, down))


def expert_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Those that a text goes through, by their paths."""
    speaking = {id(child) for module in language_modules(model) for child in module.children()}
    for path, module in model.named_modules():
        if id(module) in speaking and can_replace_experts(module):
            yield path, module


def replace_experts(model: nn.Module, sources: Mapping[str, ExpertSources]) -> None:
    """By the paths of their modules; each is freed before the next is packed."""
    for path, each in sources.items():
        experts = model.get_submodule(path)
        made = BlockExperts(experts, each)
        for hook in experts._forward_hooks.values():  # of a rank's part: it adds up all ranks' outputs
            made.register_forward_hook(hook)
        model.set_submodule(path, made)


def register_fakes() -> None:
    def products(
        rows: Tensor, experts: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, outputs: int, *args: Any
    ) -> Tensor:
        dtype = args[5] if len(args) > 5 else None
        return rows.new_empty(*experts.shape, outputs, dtype=dtype or rows.dtype)

    def combined(outputs: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
        return outputs.new_empty(outputs.shape[0], outputs.shape[2], dtype=dtype)

    if hasattr(torch.ops.parley, "quantized_experts"):
        torch.library.register_fake("parley::quantized_experts", products, allow_override=True)
        torch.library.register_fake("parley::combine_experts", combined, allow_override=True)


def _up_products(up: Sequence[Sources], bias: Tensor | None) -> Iterator[ExpertProduct]:
    """One where all have the same format."""
    if len({_format(each) for each in up}) == 1:
        yield ExpertProduct(pack_experts(list(zip(*up, strict=True))), bias)
        return
    first = 0
    for sources in up:
        outputs = sources[0].outputs
        part = None if bias is None else bias[:, first : first + outputs]
        yield ExpertProduct(pack_experts([[each] for each in sources]), part)
        first += outputs


def _format(sources: Sources) -> BlockFormat:
    return sources[0].format


def _without_weights(experts: Any) -> Any:
    for name in (GATE_UP, UP, DOWN):
        for each in (name, f"{name}_bias"):
            if isinstance(getattr(experts, each, None), nn.Parameter):
                experts.register_parameter(each, None)
    return experts

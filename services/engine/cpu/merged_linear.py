"""Linear layers with their weights laid out once, for our own kernel or for oneDNN: the CPU's products without a
reorder in each of them."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from services.engine.cpu import kernels
from services.engine.cpu.bf16_linear import CodedLinear
from services.engine.cpu.bf16_linear import is_available as can_code
from services.engine.execution.model_structure import language_modules

# layers that models call one after another with the same input, under the names that nearly all of them use
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"))
DTYPES = (torch.float32, torch.bfloat16)

Make = Callable[[nn.Linear], nn.Module]


class PackedLinear(nn.Module):
    """Takes the place of an `nn.Linear` in inference; the unpacked weight is freed unless somebody else holds it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        # a plain attribute: torch.export cannot copy an opaque tensor as it does parameters and buffers
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias: Tensor | None
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        return out

    def unpacked(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as they were."""
        return self.weight.to_dense(), self.bias


PACKED = PackedLinear | CodedLinear


class MergedLinear(nn.Module):
    """Computes for itself and for the layers after it, which get the same input: one product instead of three."""

    def __init__(self, product: nn.Module, sizes: list[int]) -> None:
        """`product`: of all their outputs, `sizes` of which are each layer's."""
        super().__init__()
        self.packed = product
        self._sizes = sizes
        self.in_features, self.out_features = int(product.in_features), sizes[0]  # type: ignore[arg-type]
        self._latest = threading.local()  # two threads may run one model

    def forward(self, inputs: Tensor) -> Tensor:
        parts = torch.split(self.packed(inputs), self._sizes, dim=-1)
        self._latest.inputs, self._latest.parts = inputs, parts
        first: Tensor = parts[0]
        return first

    def part(self, index: int, inputs: Tensor) -> Tensor:
        if self._latest.inputs is not inputs:
            raise RuntimeError("sibling layers got different inputs")
        part: Tensor = self._latest.parts[index]
        if index == len(self._sizes) - 1:
            del self._latest.inputs, self._latest.parts
        return part

    def size_of(self, index: int) -> int:
        return self._sizes[index]

    @property
    def can_unpack(self) -> bool:
        return isinstance(self.packed, PACKED)

    def unpacked(self, index: int = 0) -> tuple[Tensor, Tensor | None]:
        assert isinstance(self.packed, PACKED)
        weight, bias = self.packed.unpacked()
        part = None if bias is None else torch.split(bias, self._sizes)[index]
        return torch.split(weight, self._sizes)[index].clone(), part


class LinearSlice(nn.Module):
    """What the first one computed for it."""

    def __init__(self, first: MergedLinear, index: int) -> None:
        super().__init__()
        self._first = (first,)  # not as a child: it is one already, elsewhere
        self._index = index
        self.in_features, self.out_features = first.in_features, first.size_of(index)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._first[0].part(self._index, inputs)

    @property
    def can_unpack(self) -> bool:
        return self._first[0].can_unpack

    def unpacked(self) -> tuple[Tensor, Tensor | None]:
        return self._first[0].unpacked(self._index)


class Float32Head(nn.Module):
    """The language head: logits are the sums as they are, not rounded to the model's own numbers, in which the
    likeliest tokens often tie."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.linear = linear
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.linear(inputs.float())
        return out


def pack_linears(model: nn.Module, folder: Path | None = None, *, coded: bool | None = None) -> None:
    """On the CPU; elsewhere it changes nothing. `folder`: of our kernels.

    `coded`: whether our kernel multiplies; None: where it is built already. No model waits for the minute that building
    it takes: the compiled step builds it, and the next start has it.
    """
    weight = next(model.parameters())
    if _can_pack(weight):
        can = coded if coded is not None else _can_code(weight, folder)
        replace_linears(model, CodedLinear if can else PackedLinear)
    _unround_head(model)


def is_coded(model: nn.Module) -> bool:
    """What a compiled step's layers must be like."""
    return any(isinstance(each, CodedLinear) for each in model.modules())


def _can_code(weight: Tensor, folder: Path | None) -> bool:
    if weight.dtype != torch.bfloat16 or not torch.cpu._is_avx512_bf16_supported():
        return False
    if folder is not None and kernels.library_path(folder).exists():
        kernels.try_to_load(folder)
    return can_code()


def _unround_head(model: Any) -> None:
    """Where the head's layer gives float32 for float32."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and getattr(head, "unrounded", False):
        model.set_submodule(next(name for name, each in model.named_modules() if each is head), Float32Head(head))


def replace_linears(model: nn.Module, make: Make) -> None:
    """Every plain `nn.Linear` that speaks, siblings together; each is freed before the next is made."""
    for module in language_modules(model):
        for names in SIBLINGS:
            _replace_together(module, names, make)
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, make(child))


def _replace_together(module: nn.Module, names: tuple[str, ...], make: Make) -> None:
    linears = [child for name in names if type(child := getattr(module, name, None)) is nn.Linear]
    alike = len({(linear.in_features, linear.bias is None) for linear in linears}) == 1
    if len(linears) == len(names) and alike:
        first = MergedLinear(make(_joined(linears)), [linear.out_features for linear in linears])
        for index, name in enumerate(names):
            setattr(module, name, LinearSlice(first, index) if index else first)


def unpack_linears(model: nn.Module) -> None:
    """For models that reach for a layer's weight themselves. Those of 8 bits stay: they have nothing to go back to."""
    if not any(isinstance(module, PACKED) for module in model.modules()):
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            layer = child.linear if isinstance(child, Float32Head) else child
            if isinstance(layer, PACKED) or (isinstance(layer, MergedLinear | LinearSlice) and layer.can_unpack):
                setattr(module, name, _linear(*layer.unpacked()))


def _joined(linears: list[nn.Linear]) -> nn.Linear:
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    return _linear(weight, torch.cat(biases) if biases else None)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    return linear


def packed_weights(model: nn.Module) -> dict[str, Tensor]:
    """oneDNN's, which torch.export knows by number only: by the path of the module, in the order of the modules."""
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or weight.dtype not in DTYPES or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

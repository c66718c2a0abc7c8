"""Linear layers with their weights laid out once for oneDNN: the CPU's products without a reorder in each of them."""

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """Takes the place of an `nn.Linear` in inference; the unpacked weight is freed unless somebody else holds it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        # plain attributes: torch.export cannot copy an opaque tensor as it does parameters and buffers
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        return out


def pack_linears(model: nn.Module) -> None:
    """Packs every plain `nn.Linear` of a model on the CPU; anywhere else, and without oneDNN, it changes nothing."""
    if not _can_pack(next(model.parameters())):
        return
    linears = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) is nn.Linear
    ]
    for module, name, child in linears:
        setattr(module, name, PackedLinear(child))


def unpack_linears(model: nn.Module) -> None:
    """For models that reach for a layer's weight themselves."""
    packed = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, PackedLinear)
    ]
    for module, name, child in packed:
        linear = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(child.weight.to_dense(), requires_grad=False)
        linear.bias = None if child.bias is None else nn.Parameter(child.bias, requires_grad=False)
        setattr(module, name, linear)


def packed_weights(model: nn.Module) -> dict[str, Tensor]:
    """By the path of the module, in the order of the modules."""
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or weight.dtype not in DTYPES or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

"""Linear layers in bfloat16 by a kernel of our own (bf16.cpp), which keeps weights in 12 bits each without loss."""

import torch
from torch import Tensor, nn

OPERATOR = "bf16_linear"


class CodedLinear(nn.Module):
    """Takes the place of an `nn.Linear` in bfloat16. Inputs in float32 get sums in float32, which are not rounded."""

    unrounded = True

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias: Tensor | None
        packed = torch.ops.parley.bf16_pack(linear.weight.detach())
        for name, part in zip(("codes", "table", "starts", "exceptions"), packed, strict=True):
            self.register_buffer(name, part, persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float(), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = torch.ops.parley.bf16_linear(inputs, *self._packed(), self.bias, self.out_features)
        return out

    def unpacked(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as they were."""
        weight: Tensor = torch.ops.parley.bf16_unpack(*self._packed(), self.in_features, self.out_features)
        return weight, None if self.bias is None else self.bias.bfloat16()

    def _packed(self) -> list[Tensor]:
        return [self.get_buffer(name) for name in ("codes", "table", "starts", "exceptions")]


def is_available() -> bool:
    """Whether the kernels are loaded and have this one: it needs AVX512-BF16."""
    return hasattr(torch.ops.parley, OPERATOR)


def register_fakes() -> None:
    def empty(
        inputs: Tensor,
        codes: Tensor,
        table: Tensor,
        starts: Tensor,
        exceptions: Tensor,
        bias: Tensor | None,
        outputs: int,
    ) -> Tensor:
        return inputs.new_empty(*inputs.shape[:-1], outputs)

    if is_available():
        torch.library.register_fake("parley::bf16_linear", empty, allow_override=True)

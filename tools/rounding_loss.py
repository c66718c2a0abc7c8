"""What a model loses by 4, 5 and 8 bits, layer by layer: `python -m tools.rounding_loss MODEL TEXT…`

Only weights are rounded, as `services.engine.quantization.rounded_weights` rounds them, those of one group of layers at
a time. The loss is the mean negative log-likelihood of a token.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from services.engine.loading.loader import Source, load
from services.engine.quantization.int4 import HEAD, format_of
from services.engine.quantization.quantized_blocks import BlockFormat
from services.engine.quantization.rounded_weights import EIGHT, FIVE, FOUR, RoundedWeight

WINDOW = 512  # tokens that are read at once

Choose = Callable[[str], BlockFormat | None]  # of a layer by its name


@dataclass(frozen=True, slots=True)
class Trial:
    name: str
    choose: Choose


def main() -> None:
    options = _options()
    loaded = load(Source(options.model), "cpu", options.dtype)
    model: Any = loaded.model
    if options.permute:
        permute(model)
    texts = [Path(each).read_text("utf-8", "replace") for each in options.texts]
    windows = _windows([loaded.tokenizer(text).input_ids for text in texts], options.tokens)
    plain = losses(model, windows)
    print(f"{sum(each.numel() - 1 for each in windows)} tokens of {len(texts)} texts, loss {fmean(plain):.4f}\n")
    print("| | MB | loss | ± |\n|---|---|---|---|")
    weights = Weights(model)
    for trial in trials(model):
        if not re.search(options.only, trial.name):
            continue
        with weights.rounded(trial.choose) as num_bytes:
            rises = [new - old for new, old in zip(losses(model, windows), plain, strict=True)]
        deviation = stdev(rises) / len(rises) ** 0.5
        print(f"| {trial.name} | {num_bytes / 1e6:.1f} | {fmean(rises):+.4f} | {deviation:.4f} |", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder, a GGUF file or a hub name")
    parser.add_argument("texts", nargs="+", help="files of text")
    parser.add_argument("--tokens", type=int, default=2048, help="at most, of each text")
    parser.add_argument("--dtype", default="bfloat16", help="of what is not rounded")
    parser.add_argument("--only", default="", help="a regular expression for the groups that are tried")
    parser.add_argument(
        "--permute",
        action="store_true",
        help="of a Llama: other inputs share a block than in its file",
    )
    return parser.parse_args()


def _windows(texts: list[list[int]], tokens: int) -> list[Tensor]:
    starts = range(0, tokens, WINDOW)
    parts = [ids[start : min(start + WINDOW, tokens)] for ids in texts for start in starts]
    return [torch.tensor(part) for part in parts if len(part) > 1]


@torch.inference_mode()
def losses(model: Any, windows: list[Tensor]) -> list[float]:
    """Of each token but the first of its window."""
    found: list[float] = []
    for ids in windows:
        logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0].float()
        found += cross_entropy(logits, ids[1:], reduction="none").tolist()
    return found


def trials(model: Any) -> Iterator[Trial]:
    groups = groups_of(model)
    for name, pattern in groups.items():
        yield Trial(f"{name} in 4 bits", partial(_matching, pattern, FOUR, None))
    every = "|".join(groups.values())
    yield Trial("as int4 rounds them", lambda name: HEAD if name == "lm_head" else format_of(name))
    yield Trial("all in 8 bits", partial(_matching, every, EIGHT, None))
    yield Trial("all in 5 bits", partial(_matching, every, FIVE, None))
    yield Trial("all in 4 bits", partial(_matching, every, FOUR, None))
    for name, pattern in groups.items():
        yield Trial(f"all in 4 bits, {name} in 8", partial(_matching, pattern, EIGHT, FOUR))


def _matching(pattern: str, inside: BlockFormat, outside: BlockFormat | None, name: str) -> BlockFormat | None:
    return inside if re.search(pattern, name) else outside


def groups_of(model: Any) -> dict[str, str]:
    """Regular expressions for the names of layers."""
    last = model.config.get_text_config().num_hidden_layers - 1
    kinds = sorted({name.rpartition(".")[2] for name in _linears(model)} - {"lm_head"})
    ends = {"first": "0", "first two": "[01]", "last": str(last), "last two": f"({last - 1}|{last})"}
    return {
        "head": "lm_head",
        **{each: rf"\.{each}$" for each in kinds},
        **{f"{name} layer{'s' * ('two' in name)}": rf"layers\.{number}\." for name, number in ends.items()},
    }


class Weights:
    """Of a model's linear layers, as they are and rounded; tied embeddings change with the head."""

    def __init__(self, model: Any) -> None:
        self._layers = _linears(model)
        self._plain = {name: layer.weight.data for name, layer in self._layers.items()}
        self._rounded: dict[tuple[str, BlockFormat], Tensor] = {}

    @contextmanager
    def rounded(self, choose: Choose) -> Iterator[int]:
        """Gives the bytes that all layers then have, what is not rounded in 16 bits."""
        forms = {name: choose(name) for name in self._layers}
        for name, form in forms.items():
            self._layers[name].weight.data = self._weight(name, form)
        try:
            yield sum(int(_bits(form) * self._plain[name].numel()) // 8 for name, form in forms.items())
        finally:
            for name, layer in self._layers.items():
                layer.weight.data = self._plain[name]

    def _weight(self, name: str, form: BlockFormat | None) -> Tensor:
        plain = self._plain[name]
        if form is None:
            return plain
        if (name, form) not in self._rounded:
            parts = [part.dequantize(plain.dtype) for part in RoundedWeight(plain, form).parts()]
            self._rounded[name, form] = torch.cat(parts)
        return self._rounded[name, form]


def _bits(form: BlockFormat | None) -> float:
    """A weight's."""
    return 16 if form is None else form.bits + 16 * (1 + form.minima) / form.group


def _linears(model: Any) -> dict[str, nn.Linear]:
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}


@torch.no_grad()
def permute(model: Any) -> None:
    """Of the same function: the numbers between layers, the inner ones of an MLP, and those of a head's values are in
    another order."""
    random = torch.Generator().manual_seed(0)
    config, base = model.config, model.model
    order = torch.randperm(config.hidden_size, generator=random)
    tied = model.lm_head.weight is base.embed_tokens.weight
    _reorder(base.embed_tokens, inputs=order)
    _reorder(base.norm, outputs=order)
    if not tied:
        _reorder(model.lm_head, inputs=order)
    for layer in base.layers:
        attention, mlp = layer.self_attn, layer.mlp
        values, heads = _head_orders(attention.head_dim, config, random)
        inner = torch.randperm(config.intermediate_size, generator=random)
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            _reorder(norm, outputs=order)
        for each in (attention.q_proj, attention.k_proj):
            _reorder(each, inputs=order)
        _reorder(attention.v_proj, outputs=values, inputs=order)
        _reorder(attention.o_proj, outputs=order, inputs=heads)
        for each in (mlp.gate_proj, mlp.up_proj):
            _reorder(each, outputs=inner, inputs=order)
        _reorder(mlp.down_proj, outputs=order, inputs=inner)


def _head_orders(size: int, config: Any, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of the outputs of values, and of the heads that use them."""
    orders = [torch.randperm(size, generator=random) for _ in range(config.num_key_value_heads)]
    shared = config.num_attention_heads // config.num_key_value_heads
    values = torch.cat([size * head + order for head, order in enumerate(orders)])
    heads = torch.cat([size * head + orders[head // shared] for head in range(config.num_attention_heads)])
    return values, heads


def _reorder(module: Any, outputs: Tensor | None = None, inputs: Tensor | None = None) -> None:
    weight = module.weight.data
    weight = weight if outputs is None else weight[outputs]
    module.weight.data = weight if inputs is None else weight[:, inputs].contiguous()


if __name__ == "__main__":
    main()

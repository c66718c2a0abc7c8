"""The default model with weights of 8 and 4 bits: nearly the same logits, and texts that are about as likely."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div

from services.engine.loading.loader import Source, load
from services.models.default_models import DEFAULT_CHAT
from tests.test_live.service import MODELS

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]

TEXTS = (
    "The history of ancient Rome covers the time from the fall of the Roman Republic in 27 BC until the abdication of"
    " Romulus Augustulus in AD 476. The city grew along the banks of the river Tiber, and its people traded grain, oil"
    " and wine with every port of the Mediterranean Sea.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n\n\n"
    "for i in range(10):\n    print(i, fibonacci(i))\n",
    "To make bread, mix five cups of flour with two cups of warm water, a spoon of salt and a spoon of yeast. Knead the"
    " dough for ten minutes, let it rise for two hours under a cloth, shape it into a loaf and bake it until it is"
    " brown.",
)


@torch.inference_mode()
def read(source: Source) -> list[tuple[Tensor, Tensor]]:
    """Each text's tokens, and the logits before them."""
    loaded = load(source, device="cpu", dtype="bfloat16", kernels=MODELS / "compiled")
    texts = [torch.tensor(loaded.tokenizer(text)["input_ids"]) for text in TEXTS]
    return [(ids[1:], loaded.model(input_ids=ids[None]).logits[0, :-1].float()) for ids in texts]


def perplexity(texts: list[tuple[Tensor, Tensor]]) -> float:
    return math.exp(cross_entropy(torch.cat([each[1] for each in texts]), torch.cat([each[0] for each in texts])))


@pytest.mark.extended
def test_texts_are_about_as_likely_in_4_bits(models: None) -> None:
    """Its file has 4 bits, too: blocks of 32 with scales and minima are found again, but what `int4` gives 5 bits is
    rounded once more."""
    name = str(MODELS / DEFAULT_CHAT)
    plain, quantised = read(Source(name)), read(Source(name, quantization="int4"))
    assert perplexity(quantised) / perplexity(plain) == pytest.approx(1, abs=0.05)


def test_it_says_nearly_the_same(models: None) -> None:
    name = str(MODELS / DEFAULT_CHAT)
    plain, quantised = read(Source(name)), read(Source(name, quantization="int8"))
    expected, said = (torch.cat([logits for _, logits in texts]) for texts in (plain, quantised))
    assert cosine_similarity(said, expected, dim=-1).mean() > 0.995
    assert kl_div(said.log_softmax(-1), expected.log_softmax(-1), reduction="batchmean", log_target=True) < 0.01
    assert perplexity(quantised) / perplexity(plain) == pytest.approx(1, abs=0.02)

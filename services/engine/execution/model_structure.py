"""The parts of a model that speaks and perhaps sees, by the names that `transformers` has for them."""

from typing import Any

from torch import nn


def language_model(model: Any) -> Any:
    """All of a model that only speaks; of one that also sees, its decoder, without the language head."""
    config = getattr(model, "config", None)
    return model if config is None or config is config.get_text_config() else model.get_decoder()


def trial_tokens(model: Any, number: int) -> list[int]:
    """To try a model with: none like the one before, and the same ones each time."""
    return [(7 * i + 1) % model.config.get_text_config().vocab_size for i in range(number)]


def language_modules(model: nn.Module) -> list[nn.Module]:
    """Those whose children a text goes through."""
    part = language_model(model)
    return list(model.modules()) if part is model else [model, *part.modules()]


def has_indexer(model: Any) -> bool:
    """It picks the keys that a token sees, others in chunks; only prompts longer than the check would show it."""
    return bool(getattr(model.config.get_text_config(), "index_topk", None))

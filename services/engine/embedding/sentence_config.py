"""What sentence-transformers' files say of texts before they are tokens. torch is not imported."""

from collections.abc import Mapping
from typing import Any

from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers

from services.engine.base import TextPrompts


def text_prompts(config: Mapping[str, Any], pooling: Mapping[str, Any]) -> TextPrompts:
    """Of `config_sentence_transformers.json` and the pooling's `config.json`."""
    texts = {str(name): str(text or "") for name, text in (config.get("prompts") or {}).items()}
    return TextPrompts(texts, config.get("default_prompt_name"), pools=pooling.get("include_prompt", True))


def lower_case(tokenizer: Any) -> None:
    backend = tokenizer.backend_tokenizer
    backend.normalizer = Normalizers([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])

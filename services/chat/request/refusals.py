"""Parts of the contract that are not served, each refused by its name."""

from collections.abc import Mapping

from pydantic import BaseModel

from services.errors import UnsupportedParameter

Unsupported = Mapping[str, tuple[object, ...]]  # name -> the values that ask for nothing

# vLLM's, of no single kind of request.
OF_ALL: dict[str, tuple[object, ...]] = {
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "use_beam_search": (False,),
}

REASONS = {
    "audio": "is not supported: answers are text",
    "chat_template": "is not supported: the model's own is used, and 'chat_template_kwargs' reach it",
    "function_call": "is not supported: use 'tool_choice'",
    "functions": "is not supported: use 'tools'",
    "modalities": "is not supported but as ['text']: answers are text",
    "moderation": "is not supported: nothing here moderates",
    "prediction": "is not supported: no answer is faster for it",
    "prompt_cache_options": "is not supported: prompts are cached by themselves, as long as there is room",
    "prompt_cache_retention": "is not supported but as 'in_memory': the cache does not outlive the process",
    "suffix": "is not supported: the models served here write on, and do not fill in",
    "verbosity": "is not supported but as 'medium': ask for a shorter or longer answer in a message",
    "web_search_options": "is not supported: nothing here searches the web",
}


def refuse(request: BaseModel, unsupported: Unsupported) -> None:
    for name, value in (request.model_extra or {}).items():
        if name in unsupported and value not in unsupported[name]:
            raise _refusal(name)


def _refusal(name: str) -> UnsupportedParameter:
    return UnsupportedParameter(name, REASONS[name]) if name in REASONS else UnsupportedParameter(name)


def unknown_keys(request: BaseModel, unsupported: Unsupported) -> list[str]:
    """Those outside the contract."""
    return sorted(set(request.model_extra or {}) - set(unsupported))

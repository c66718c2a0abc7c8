"""Which parts of a contract that are not served are refused by name, and which are left aside and named.

What would make an answer wrong is refused: a parameter that changes the answer, and that nothing here honours. What is
only offered, hinted or annotated is taken and left aside: an answer without it is right too.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from pydantic import BaseModel

from schemas.ignored_keys import MOST, ignored_keys
from services.errors import UnsupportedParameter

Unsupported = Mapping[str, tuple[object, ...]]  # name -> the values that ask for nothing
ReportIgnored = Callable[[Iterable[str]], None]  # takes the names of what is left aside; a strict server raises there


def report_nothing(names: Iterable[str]) -> None:
    """For those who have nobody to tell."""


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
}

# Why an answer is right without it.
LEFT_ASIDE = {
    "access_programs": "there are none here",
    "citations": "answers have none",
    "client_metadata": "kept nowhere",
    "container": "no programs are run here",
    "context": "the model's template decides which thoughts it is shown again",
    "context_management": "nothing is cleared from a conversation; a response can be compacted",
    "generate_summary": "is 'auto', 'concise' or 'detailed'",
    "image": "images are shown to the model as they come",
    "include_obfuscation": "events are not padded",
    "mcp_servers": "tools are the client's to run",
    "mode": "models here have one",
    "moderation": "nothing here moderates",
    "personality": "no model here has that switch: ask for it in a message",
    "prediction": "no answer is faster for it",
    "prompt_cache_options": "prompts are cached by themselves, as long as there is room",
    "prompt_cache_retention": "the cache does not outlive the process",
    "service_tier": "other tiers are served as `default`",
    "speed": "there is one",
    "summary": "is 'auto', 'concise' or 'detailed'",
    "verbosity": "no model here has that switch: ask for a shorter or longer answer in a message",
    "web_search_options": "nothing here searches the web",
}


def refuse(request: BaseModel, unsupported: Unsupported) -> None:
    for name, value in (request.model_extra or {}).items():
        if name in unsupported and value not in unsupported[name]:
            raise _refusal(name)


def _refusal(name: str) -> UnsupportedParameter:
    return UnsupportedParameter(name, REASONS[name]) if name in REASONS else UnsupportedParameter(name)


def unknown_keys(request: BaseModel, unsupported: Unsupported) -> list[str]:
    """All that is left aside and can be found without a model. Of those that are refused, values that ask for nothing
    are left."""
    found = (name for name in ignored_keys(request) if name not in unsupported)
    return sorted(islice(found, MOST))

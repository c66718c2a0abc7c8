"""The tokens with which prompts begin before any text of a caller's: the chat template's own and the server's system
prompt. What is computed for them may serve every owner, for it tells of no prompt what is not known anyway."""

from itertools import takewhile
from weakref import WeakKeyDictionary

from services.chat.request import prompt
from services.engine.base import Message, Tokenizer
from services.errors import InvalidRequest

Tokens = tuple[int, ...]

PROBES = ("a", "0")  # all that two prompts with these have in common at their beginning comes from neither

_known: WeakKeyDictionary[Tokenizer, dict[str | None, Tokens]] = WeakKeyDictionary()


def public_prefix(tokenizer: Tokenizer, system_prompt: str | None) -> Tokens:
    """Rendered once for each tokenizer and system prompt: blocking, as rendering is."""
    known = _known.setdefault(tokenizer, {})
    if system_prompt not in known:
        known[system_prompt] = _rendered(tokenizer, system_prompt)
    return known[system_prompt]


def num_public(tokens: Tokens, public: Tokens) -> int:
    """How many of a prompt's leading tokens are public."""
    if tokens[: len(public)] == public:
        return len(public)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tokens, public, strict=False)))


def _rendered(tokenizer: Tokenizer, system_prompt: str | None) -> Tokens:
    first: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt else []
    begun = {"add_generation_prompt": True}
    try:
        one, other = (
            prompt.encoded([*first, {"role": "user", "content": probe}], tokenizer, begun).ids for probe in PROBES
        )
    except InvalidRequest:  # the template refuses these; it says so to every request that needs them
        return ()
    return one[: num_public(one, other)]

"""Whether a grammar can be compiled, and the text that is: all that is done with the caller's own words.

Only called where it can be killed, in a process of `grammar_process`: reading and compiling take time that grows faster
than the source, and a parser's bug would end the process it runs in.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from services.engine.base import GrammarSpec
from services.engine.grammar.lark import InvalidGrammar, lark

# verbose errors would hold a whole grammar; an ambiguous one takes half a second for a token by the library's own limit
LIMITS = LLParserLimits(verbose_errors=False, step_max_items=10_000)
MAX_REASON = 4000  # characters of the library's reason that are looked at: it may quote the grammar


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as the library takes it, and as it is sent to a process that checks."""

    tokens: tuple[bytes, ...]
    special: tuple[int, ...]  # tokens that stand for more than their text
    eos: tuple[int, ...]
    markers: Mapping[str, int]

    def tokenizer(self) -> LLTokenizer:
        return LLTokenizer(_Wrapper(self), eos_token=list(self.eos) or None)  # type: ignore[arg-type]


class _Wrapper:
    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = list(vocabulary.tokens)
        self.special_token_ids = list(vocabulary.special)
        self.eos_token_id = vocabulary.eos[0] if vocabulary.eos else None

    def __call__(self, text: bytes) -> list[int]:
        """Only asked where tokens are forced, which none are; and without it the library finds tokens itself."""
        return []


def compile_text(text: str, tokenizer: LLTokenizer) -> LLMatcher:
    """Lets other threads run for all of its time."""
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise InvalidGrammar(_why(matcher.get_error()))
    return matcher


def checked_text(spec: GrammarSpec, markers: Mapping[str, int], tokenizer: LLTokenizer) -> str:
    """What `compile_text` takes; raises NoGrammar."""
    try:
        text = LLMatcher.grammar_from_lark(lark(spec, markers))
    except UnicodeError:  # half of a surrogate pair
        raise InvalidGrammar("it is no text") from None
    _check_beginning(compile_text(text, tokenizer))
    return text


def _check_beginning(matcher: LLMatcher) -> None:
    """Refuses grammars that accept no text, and those that are too ambiguous to be followed token by token."""
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        raise InvalidGrammar(_why(matcher.get_error()))
    place = next((place for place, bits in enumerate(mask) if bits), 0)
    matcher.consume_token(8 * place + max(0, (mask[place] & -mask[place]).bit_length() - 1))
    if matcher.is_error():
        raise InvalidGrammar(_why(matcher.get_error()))


REASONS = {
    r'Unimplemented keys: \["([^"]+)"': "'{}' is not supported in a JSON schema",
    r"Unknown format": "'format' names none of the formats that are supported",
    r"oneOf constraints": "'oneOf' is supported only where no two of its schemas can both hold",
    r"min/maxProperties": "'minProperties' and 'maxProperties' are supported only where all properties are required",
    r"Pointer '.*' does not exist": "'$ref' points to nothing",
    r"Resource '.*' is not present": "'$ref' and '$schema' must not lead outside the schema",
    r"too (?:big|large)|Too many items|precomputation failed|Current row has": "it is too large, or takes too long",
    r"NoExtension": "no text matches it",
    r"regex parse error:.*\nerror: ([^\n]+)": "its regular expression is not supported: {}",
    r"(look-?arounds?) not supported": "its regular expression is not supported: {}",
    r"Invalid type": "'type' names none of JSON's types",
    r"^(?:at )?\d+\(\d+\): (?:failed to compile JSON schema: )?([^\n]{,80}?)(?:, got|\(at|\n|$)": "{}",
}


def _why(error: str) -> str:
    """The library's reason without the caller's own text, which it quotes."""
    if len(error) > MAX_REASON:
        error = error[: MAX_REASON // 2] + error[-MAX_REASON // 2 :]
    for pattern, message in REASONS.items():
        if found := re.search(pattern, error, re.DOTALL):
            return message.format(*found.groups())
    return "it is no grammar that is supported"

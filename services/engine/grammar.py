"""What an answer may look like, held to token by token. llguidance does the work; nobody who asks for none pays.

Its masks take a few microseconds a token (docs/structured-output.md): they are made in the engine's thread, in turn.
"""

import asyncio
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from services.engine.base import GrammarSpec
from services.engine.lark import NoGrammar, lark
from services.engine.token_texts import TokenTexts
from services.errors import InvalidRequest

KEPT = 64  # compiled grammars of one engine
KEPT_SOURCE = 1_000_000  # characters of theirs in all: a large one takes up to 300 bytes for each
MAX_SOURCE = 250_000  # characters; the library bounds what it makes of them
# verbose errors would hold a whole grammar; an ambiguous one takes half a second for a token by the library's own limit
LIMITS = LLParserLimits(verbose_errors=False, step_max_items=10_000)

Bits = NDArray[np.uint8]


class Matcher:
    """One grammar on its way through one answer."""

    def __init__(self, matcher: LLMatcher, ends: NDArray[np.int64]) -> None:
        self._matcher = matcher
        self.ends = ends  # the tokens that say an answer is complete

    @property
    def is_over(self) -> bool:
        """Nothing can follow, and nothing is missing."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def advance(self, token: int) -> None:
        """Where the grammar comes to its limits, or does not have this token, nothing is allowed from here on."""
        self._matcher.consume_token(token)

    def allowed(self) -> Bits:
        """A bit for each token, the lowest of a byte first; none where the grammar cannot go on."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return mask[:0] if self._matcher.is_error() else mask


class Grammars:
    """Compiles for one tokenizer, in a thread of its own: the same one twice at once is compiled once."""

    def __init__(self, texts: TokenTexts, vocabulary: int, eos: frozenset[int]) -> None:
        self._texts = texts
        self._vocabulary = vocabulary
        self._ends = np.array(sorted(token for token in eos if token < vocabulary), np.int64)
        self._worker = ThreadPoolExecutor(1, "grammar")
        self._kept: dict[GrammarSpec, LLMatcher] = {}  # the worker's own, the latest last
        self.num_compiled = 0

    async def matcher(self, spec: GrammarSpec) -> Matcher:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._worker, self._begin, replace(spec, param=""))
        except NoGrammar as error:
            raise InvalidRequest(f"'{spec.param}': {error}", param=spec.param) from error

    def _begin(self, spec: GrammarSpec) -> Matcher:
        compiled = self._kept.pop(spec, None) or self._compile(spec)
        self._kept[spec] = compiled
        while len(self._kept) > KEPT or sum(len(each.source) for each in self._kept) > KEPT_SOURCE:
            del self._kept[next(iter(self._kept))]
        return Matcher(compiled.deep_copy(), self._ends)

    def _compile(self, spec: GrammarSpec) -> LLMatcher:
        if len(spec.source) > MAX_SOURCE:
            raise NoGrammar(f"it is longer than {MAX_SOURCE} characters")
        try:
            grammar = LLMatcher.grammar_from_lark(lark(spec, self._texts.markers))
        except UnicodeError:  # half of a surrogate pair
            raise NoGrammar("it is no text") from None
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if error := _flaw(matcher):
            raise NoGrammar(_why(error))
        self.num_compiled += 1
        return matcher

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        eos = self._ends.tolist()
        return LLTokenizer(_Tokens(self._texts, self._vocabulary, eos), eos_token=eos or None)  # type: ignore[arg-type]


def _flaw(matcher: LLMatcher) -> str | None:
    """Of what can never be said, and of what has too many ways to go on once it is begun."""
    mask = b"" if matcher.is_error() else matcher.compute_bitmask()
    if matcher.is_error():
        return str(matcher.get_error())
    begun = matcher.deep_copy()
    begun.consume_token(int(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little").argmax()))
    return str(begun.get_error()) if begun.is_error() else None


class _Tokens:
    """A tokenizer as the library reads it: the bytes of each token, and which stand for more than these."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, texts: TokenTexts, vocabulary: int, eos: Sequence[int]) -> None:
        self.tokens = [texts.raw(token) for token in range(vocabulary)]
        self.special_token_ids = sorted({*eos, *texts.markers.values()} & {*range(vocabulary)})
        self.eos_token_id = eos[0] if eos else None

    def __call__(self, text: bytes) -> list[int]:
        """Only asked where tokens are forced, which none are; and without it the library finds tokens itself."""
        return []


REASONS = {
    r'Unimplemented keys: \["([^"]+)"': "'{}' is not supported in a JSON schema",
    r"Unknown format": "'format' names none of the formats that are supported",
    r"oneOf constraints": "'oneOf' is supported only where no two of its schemas can both hold",
    r"min/maxProperties": "'minProperties' and 'maxProperties' are supported only where all properties are required",
    r"Pointer '.*' does not exist": "'$ref' points to nothing",
    r"Resource '.*' is not present": "'$ref' and '$schema' must not lead outside the schema",
    r"too (?:big|large)|Too many items|precomputation failed|Current row has": "it is too large, or takes too long",
    r"NoExtension": "nothing can be said that fulfils it",
    r"regex parse error:.*\nerror: ([^\n]+)": "its regular expression is not supported: {}",
    r"(look-?arounds?) not supported": "its regular expression is not supported: {}",
    r"Invalid type": "'type' names none of JSON's types",
    r"^(?:at )?\d+\(\d+\): (?:failed to compile JSON schema: )?([^\n]{,80}?)(?:, got|\(at|\n|$)": "{}",
}


def _why(error: str) -> str:
    """The library's reason without the caller's own text, which it quotes."""
    for pattern, said in REASONS.items():
        if found := re.search(pattern, error, re.DOTALL):
            return said.format(*found.groups())
    return "it is no grammar that is supported"

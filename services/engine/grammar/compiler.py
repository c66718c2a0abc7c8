"""What an answer may look like, held to token by token. llguidance does the work; nobody who asks for none pays.

Its masks take a few microseconds a token (docs/structured-output.md): they are made in the engine's thread, in turn.

A grammar is first checked in a process that is killed when its time is up (`grammar_process`), and what has passed is
compiled here, in a thread. Nothing shows in a source how long it takes: `(a|b)?` written 4,000 times takes half a
second, 40,000 times 45, while most repetitions, counts and schemas of that size take milliseconds. The compiler lets
other threads run (none paused for more than 10 ms in those 45 s), so the second time is felt by the caller alone: a new
schema takes 3 ms more than if it were not checked, a known one nothing.
"""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from hashlib import sha256

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from services.engine.base import MAX_SOURCE, GrammarSpec
from services.engine.grammar.check import Vocabulary, compile_text
from services.engine.grammar.checker import CPU_S, GrammarChecker
from services.engine.grammar.lark import InvalidGrammar
from services.engine.scheduling.fair_slots import FairSlots
from services.engine.token_texts import TokenTexts
from services.errors import InvalidRequest, literal

KEPT = 64  # compiled grammars of one engine
KEPT_SOURCE = 1_000_000  # characters of theirs in all: a large one takes up to 300 bytes for each
KEPT_REFUSALS = 1024
SLOTS, SHARE = 4, 3  # grammars that are compiled at once, and of one owner
MAX_WAITING = 64  # of one owner

Owned = tuple[str, GrammarSpec]
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


class GrammarCompiler:
    """Compiles for one tokenizer: the same one twice at once is compiled once, and what was refused is remembered.

    For each owner by itself: that a grammar is there already is felt in the time it takes, and would tell of another's.
    """

    def __init__(self, texts: TokenTexts, vocabulary: int, eos: frozenset[int], cpu_s: float = CPU_S) -> None:
        """`cpu_s`: how long checking one may take."""
        self._texts = texts
        self._size = vocabulary
        self._ends = np.array(sorted(token for token in eos if token < vocabulary), np.int64)
        self.checker = GrammarChecker(lambda: self.vocabulary, cpu_s)
        self._workers = ThreadPoolExecutor(SLOTS, "grammar")
        self._slots = FairSlots(SLOTS, SHARE, MAX_WAITING)
        self._kept: dict[Owned, LLMatcher] = {}  # the latest last
        self._refused: dict[tuple[str, bytes], str] = {}  # by owner and digest, for what reason
        self._compiling: dict[Owned, asyncio.Task[LLMatcher]] = {}
        self.num_compiled = 0

    async def matcher(self, spec: GrammarSpec, owner: str = "") -> Matcher:
        try:
            compiled = await self._compiled(replace(spec, param=""), owner)
        except InvalidGrammar as error:
            raise InvalidRequest(f"'%s': {literal(str(error))}", spec.param) from error
        return Matcher(compiled.deep_copy(), self._ends)

    async def stop(self) -> None:
        """Ends its process and its threads; whoever waits for a grammar gets Unavailable."""
        await asyncio.to_thread(self.checker.stop)
        await asyncio.to_thread(self._workers.shutdown)

    async def _compiled(self, spec: GrammarSpec, owner: str) -> LLMatcher:
        if len(spec.source) > MAX_SOURCE:
            raise InvalidGrammar(f"it is longer than {MAX_SOURCE} characters")
        key = owner, spec
        if (compiled := self._kept.pop(key, None)) is not None:
            self._kept[key] = compiled
            return compiled
        if (reason := self._refused.get((owner, _digest(spec)))) is not None:
            raise InvalidGrammar(reason)
        if (task := self._compiling.get(key)) is None:
            task = self._compiling[key] = asyncio.create_task(self._compile(spec, owner))
            task.add_done_callback(lambda done: self._settle(key, done))
        return await asyncio.shield(task)  # whoever leaves does not take it away from the others

    async def _compile(self, spec: GrammarSpec, owner: str) -> LLMatcher:
        async with self._slots.slot(owner):
            return await asyncio.get_running_loop().run_in_executor(self._workers, self._work, spec)

    def _work(self, spec: GrammarSpec) -> LLMatcher:
        return compile_text(self.checker.check(spec), self._tokenizer)

    def _settle(self, key: Owned, task: asyncio.Task[LLMatcher]) -> None:
        del self._compiling[key]
        match None if task.cancelled() else task.exception():
            case None if not task.cancelled():
                self._keep(key, task.result())
            case InvalidGrammar() as error:
                self._refuse(*key, str(error))

    def _keep(self, key: Owned, compiled: LLMatcher) -> None:
        self.num_compiled += 1
        self._kept[key] = compiled
        while len(self._kept) > KEPT or sum(len(spec.source) for _, spec in self._kept) > KEPT_SOURCE:
            del self._kept[next(iter(self._kept))]

    def _refuse(self, owner: str, spec: GrammarSpec, reason: str) -> None:
        self._refused[owner, _digest(spec)] = reason
        if len(self._refused) > KEPT_REFUSALS:
            del self._refused[self._oldest_of_the_most()]

    def _oldest_of_the_most(self) -> tuple[str, bytes]:
        """One owner's many refusals do not make the others' forgotten: that would be felt in time, too."""
        held = Counter(owner for owner, _ in self._refused)
        most = held.most_common(1)[0][0]
        return next(each for each in self._refused if each[0] == most)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return self.vocabulary.tokenizer()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        eos = tuple(self._ends.tolist())
        special = sorted({*eos, *self._texts.markers.values()} & {*range(self._size)})
        tokens = tuple(self._texts.raw(token) for token in range(self._size))
        return Vocabulary(tokens, tuple(special), eos, self._texts.markers)


def _digest(spec: GrammarSpec) -> bytes:
    return sha256("\0".join((spec.kind, spec.before, spec.source)).encode(errors="surrogatepass")).digest()

"""One step after another: schedule -> run -> draw -> say.

Where `run` returns before its step is done, what was drawn from the step before is said meanwhile: text, grammars and
the event loop cost a GPU nothing. Only what the scheduler must know at once, whether an answer has come to its last
token, is known at once; one that ends in its text, at a stop string, has a step more that nobody hears of.

And where the device can go on by itself, it is sent ahead: the next token's step begins with what was just drawn,
before it has come back. Who does not go on then, is left out; who comes in meanwhile, runs beside it.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, count
from math import nan

import torch
from torch import Tensor

from services.engine.base import Piece, TokenLogprob
from services.engine.cpu.threads import neighbours
from services.engine.device.resources import is_out_of_memory
from services.engine.execution.lookahead import Lookahead, launch
from services.engine.execution.piece_stream import Mailbox
from services.engine.execution.request import Request
from services.engine.execution.runner import Runner
from services.engine.sampling.logits_processors import fill_grammar_masks
from services.engine.sampling.sampler import (
    SampleResult,
    TokenLogprobs,
    compute_logprobs,
    compute_prompt_logprobs,
    select_rows,
)
from services.engine.scheduling.scheduler import ScheduledSequence, Scheduler
from services.engine.scheduling.sequence import Sequence
from services.engine.token_texts import TokenTexts
from services.errors import EngineFailed, GrammarStuck, InvalidRequest, ServiceError

logger = logging.getLogger(__name__)

FAILED = "The engine failed on this request"
STUCK = "the answer could not go on: too many ways are open there, or none that this model has tokens for"

Delivery = tuple[Mailbox, Piece | ServiceError]
ToError = Callable[[Sequence], ServiceError]


def _failed(sequence: Sequence) -> EngineFailed:
    return EngineFailed(FAILED)


def _stuck(sequence: Sequence) -> GrammarStuck:
    """What compiles may grow beyond all limits in use, or ask for what this model has no token for."""
    grammar = sequence.job.sampling.grammar
    assert grammar
    return GrammarStuck(f"'%s': after {sequence.num_sampled} tokens {STUCK}", grammar.param)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token that its sequence has, but nobody has heard of."""

    request: Request
    token: int
    weighed: TokenLogprobs | None


class EngineCore:
    """The engine thread's own. `deliver`: one call for all that a step has to say."""

    def __init__(
        self, runner: Runner, scheduler: Scheduler, texts: TokenTexts, deliver: Callable[[list[Delivery]], None]
    ) -> None:
        self.runner = runner
        self.requests: dict[Sequence, Request] = {}
        self._scheduler = scheduler
        self._texts = texts
        self._deliver = deliver
        self._drawn: list[SampledToken] = []
        self._ahead: Lookahead | None = None

    def add(self, request: Request) -> None:
        self.requests[request.sequence] = request
        self._scheduler.add(request.sequence)

    def step(self) -> None:
        batch = self._scheduler.schedule()
        self.runner.change(batch.changes)
        works = self._seen(batch.works)
        ahead, self._ahead = self._ahead, None
        if ahead and ahead.preemptions == self._scheduler.num_preemptions:
            works, logits = self._join(ahead, works)
        else:
            logits = self._launch(works)
        self._say()
        self._forget_dropped()
        if logits is not None:
            self._draw_all(works, logits)

    def fail_step(self) -> None:
        """Ends who runs; who waits goes on waiting. Where nobody ran, it is they who break it."""
        self._say()
        self._ahead = None
        self._end(self._scheduler.drop_running() or self._scheduler.drop_all(), EngineFailed(FAILED))
        self._forget_dropped()

    def end_all(self, error: ServiceError) -> None:
        self._say()
        self._ahead = None
        self._end(self._scheduler.drop_all(), error)
        self._forget_dropped()

    # --- running ---

    def _seen(self, works: list[ScheduledSequence]) -> list[ScheduledSequence]:
        """Those whose images could be looked at: one that cannot must not cost the others their step."""
        if self.runner.vision is None:
            return works
        blind = []
        for work in works:
            try:
                self.runner.vision.look(work)
            except Exception:
                logger.exception("an image of request %s could not be looked at", work.sequence.job.id)
                blind.append(work.sequence)
        if not blind:
            return works
        self._say()  # what they have is theirs, and comes before the failure
        self._fail_alone(blind, "its images cannot be seen")
        return [work for work in works if not work.sequence.finished]

    def _join(self, ahead: Lookahead, works: list[ScheduledSequence]) -> tuple[list[ScheduledSequence], Tensor | None]:
        begun, others = ahead.splits(works)
        if not begun:
            return others, self._launch(others)
        logits = select_rows(ahead.logits, [ahead.rows[work.sequence] for work in begun])
        if not others:
            return begun, logits
        logits = logits.clone()  # they last until the next step
        more = self._launch(others)
        return [*begun, *others], None if more is None else torch.cat([logits, more])

    def _launch(self, works: list[ScheduledSequence]) -> Tensor | None:
        """A step's logits; None where it found no memory, and is tried again in smaller ones."""
        if not works:
            return None
        for request in (self.requests[work.sequence] for work in works):
            request.started = request.started or time.monotonic()
        try:
            with neighbours.watched():
                return self.runner.run(works)
        except RuntimeError as error:
            self._shrink(error, works)
        torch.cuda.empty_cache()
        return None

    def _shrink(self, error: RuntimeError, works: list[ScheduledSequence]) -> None:
        if not is_out_of_memory(error) or not self._scheduler.shrink():
            raise error
        logger.warning("out of memory in a step of %d sequences, trying smaller ones: %s", len(works), error)

    # --- drawing ---

    def _draw_all(self, works: list[ScheduledSequence], logits: Tensor) -> None:
        sampling = [work for work in works if work.samples]
        rows = self._weigh_prompts(works, logits)
        for work in works:
            work.sequence.num_computed += work.num_tokens - len(work.draft)
        try:
            self._draw_drafts(
                [(work, rows[work.sequence]) for work in sampling], logits, alone=len(sampling) == len(works)
            )
        except RuntimeError as error:
            self._ahead = None
            for sequence in [work.sequence for work in sampling if not work.sequence.finished]:
                sequence.rewind()
            self._shrink(error, works)
        if not self.runner.asynchronous:
            self._say()

    def _weigh_prompts(self, works: list[ScheduledSequence], logits: Tensor) -> dict[Sequence, int]:
        """The first row from which each draws; those before it tell of its prompt."""
        rows = {}
        for work, row in zip(works, accumulate((work.num_logits for work in works), initial=0), strict=False):
            rows[work.sequence] = row
            if work.scores:
                add_prompt_logprobs(work, logits[row : row + work.num_tokens])
                rows[work.sequence] += work.num_tokens - 1
        return rows

    def _draw_drafts(self, drawing: list[tuple[ScheduledSequence, int]], logits: Tensor, *, alone: bool) -> None:
        """Works with the first of their rows: one token each, then those behind it, as if each had a step of its own,
        as long as the draft was right. `alone`: nobody was reading beside them."""
        alone = alone and not any(work.draft for work, _ in drawing)
        for depth in count():
            drawing = [(work, row) for work, row in drawing if not work.sequence.finished]
            if not drawing:
                return
            self._draw(
                [work.sequence for work, _ in drawing], select_rows(logits, [row + depth for _, row in drawing]), alone
            )
            if any(work.draft for work, _ in drawing):
                self._say()
            for work, _ in drawing:
                if work.draft and not _was_right(work, depth):
                    self._scheduler.record_acceptance(work, depth)
            drawing = [(work, row) for work, row in drawing if _was_right(work, depth)]
            for work, _ in drawing:
                work.sequence.num_computed += 1

    def _draw(self, sequences: list[Sequence], logits: Tensor, alone: bool) -> None:
        sequences, logits = self._without(
            fill_grammar_masks(sequences), "its grammar allows no token", sequences, logits, _stuck
        )
        if not sequences:
            return
        draws = SampleResult(logits, sequences)
        if alone:
            self._ahead = launch(self.runner, sequences, draws.tokens, self._scheduler.num_preemptions)
        drawn = draws.result()
        broken = [row for row, token in enumerate(drawn) if token is None]
        sequences, logits = self._without(broken, "its logits are not numbers", sequences, logits)
        whole = [token for token in drawn if token is not None]
        tokens = [sequence.force_token(token) for sequence, token in zip(sequences, whole, strict=True)]
        weighed = compute_logprobs(logits, sequences, tokens)
        for sequence, given, token in zip(sequences, whole, tokens, strict=True):
            if self._ahead and token != given:  # it went on with another
                self._ahead.rows.pop(sequence, None)
            sequence.append(token)
            self._drawn.append(SampledToken(self.requests[sequence], token, weighed.get(sequence)))

    def _without(
        self, failing: list[int], why: str, sequences: list[Sequence], logits: Tensor, error: ToError = _failed
    ) -> tuple[list[Sequence], Tensor]:
        if not failing:
            return sequences, logits
        self._fail_alone([sequences[row] for row in failing], why, error)
        whole = [row for row in range(len(sequences)) if row not in failing]
        return [sequences[row] for row in whole], select_rows(logits, whole)

    # --- saying ---

    def _say(self) -> None:
        """What was drawn and not yet said."""
        drawn, self._drawn = self._drawn, []
        deliveries: list[Delivery] = []
        broken = []
        for each in drawn:
            request = each.request
            try:
                is_first = not request.told
                piece = request.say(each.token, self._named(each))
                if piece and is_first and request.sequence.job.sampling.prompt_logprobs is not None:
                    piece = replace(piece, prompt=self._prompt(request.sequence))
            except Exception:  # one request's text must not cost the others theirs
                logger.exception("no text for a token of request %s", request.sequence.job.id)
                broken.append(request.sequence)
            else:
                if piece:
                    deliveries.append((request.mailbox, piece))
        self._deliver(deliveries)
        self._fail_alone(broken, "its tokens give no text")

    def _prompt(self, sequence: Sequence) -> tuple[TokenLogprob, ...]:
        first, *others = sequence.job.prompt
        scored, sequence.scored = sequence.scored, []
        named = [self._weighed(token, each) for token, each in zip(others, scored, strict=True)]
        return (self._texts.named(first, nan), *named)

    def _named(self, drawn: SampledToken) -> TokenLogprob | None:
        return None if drawn.weighed is None else self._weighed(drawn.token, drawn.weighed)

    def _weighed(self, token: int, weighed: TokenLogprobs) -> TokenLogprob:
        top = tuple(map(self._texts.named, weighed.ids, weighed.logprobs))
        return self._texts.named(token, weighed.logprob, top)

    # --- leaving ---

    def _forget_dropped(self) -> None:
        """Whose slot is free; one that was cancelled since the batch was made still has its own."""
        for sequence in [each for each in self.requests if each.is_over and each.slot is None]:
            del self.requests[sequence]

    def _fail_alone(self, sequences: list[Sequence], why: str, error: ToError = _failed) -> None:
        for sequence in sequences:
            told = error(sequence)
            level = logging.INFO if isinstance(told, InvalidRequest) else logging.ERROR
            logger.log(level, "request %s failed: %s", sequence.job.id, why)
            self._scheduler.fail(sequence)
            self._end([sequence], told)

    def _end(self, sequences: list[Sequence], error: ServiceError) -> None:
        requests = [self.requests.pop(sequence) for sequence in sequences if sequence in self.requests]
        self._deliver([(request.mailbox, error) for request in requests])


def _was_right(work: ScheduledSequence, depth: int) -> bool:
    """Whether the token just drawn was guessed, so that the one behind it can be drawn from the same step."""
    guessed = depth < len(work.draft) and work.draft[depth] == work.sequence.tokens[-1]
    return guessed and not work.sequence.finished


def add_prompt_logprobs(work: ScheduledSequence, logits: Tensor) -> None:
    """A prompt that is read again, after its place was lost, is weighed again."""
    sequence = work.sequence
    if work.start == 0:
        sequence.scored = []
    coming = list(sequence.job.prompt[work.start + 1 : work.end + 1])
    sequence.scored += compute_prompt_logprobs(logits, coming, sequence.job.sampling.prompt_logprobs or 0)

"""The decode loop: schedule -> execute -> sample -> emit.

An asynchronous executor returns before its step is done. The tokens sampled from the step before are emitted
meanwhile, so that detokenization, grammars and the event loop cost a GPU nothing. The scheduler needs to know at once
only whether a sequence has its last token; one that ends at a stop string computes a step more, which is dropped.

Such an executor is also sent ahead: the next step begins with the sampled tokens before they have come back. Sequences
that do not go on are left out of it; sequences that come in meanwhile run beside it.
"""

import logging
import time
from collections.abc import Callable, Iterable
from itertools import accumulate, count

import torch
from torch import Tensor

from services.engine.device.resources import is_out_of_memory
from services.engine.execution.executor import Executor, OutOfMemory
from services.engine.execution.lookahead import Lookahead, launch
from services.engine.execution.output_processor import OutputProcessor
from services.engine.execution.request import Request
from services.engine.sampling.logits_processors import fill_grammar_masks
from services.engine.sampling.logprobs import compute_logprobs, compute_prompt_logprobs
from services.engine.sampling.rows import select_rows
from services.engine.sampling.sampler import SampleResult
from services.engine.scheduling.scheduler import ScheduledSequence, Scheduler
from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.step import CacheChange, Step
from services.errors import EngineFailed, GrammarStuck, InvalidRequest, ServiceError

logger = logging.getLogger(__name__)

FAILED = "The engine failed on this request"
STUCK = "the answer could not go on: too many ways are open there, or none that this model has tokens for"

ToError = Callable[[Sequence], ServiceError]


def _failed(sequence: Sequence) -> EngineFailed:
    return EngineFailed(FAILED)


def _stuck(sequence: Sequence) -> GrammarStuck:
    """A valid grammar can still exceed the parser's limits, or ask for what this model has no token for."""
    grammar = sequence.job.sampling.grammar
    assert grammar
    return GrammarStuck(f"'%s': after {sequence.num_sampled} tokens {STUCK}", grammar.param)


class EngineCore:
    """Owned by the engine's thread."""

    def __init__(self, executor: Executor, scheduler: Scheduler, output: OutputProcessor) -> None:
        self._executor = executor
        self.scheduler = scheduler
        self._output = output
        self._lookahead: Lookahead | None = None
        self._retired: set[int] = set()  # adapters that no new request names

    @property
    def has_requests(self) -> bool:
        return bool(self._output.requests)

    def add(self, request: Request) -> None:
        self._output.requests[request.sequence] = request
        self.scheduler.add(request.sequence)

    def retire_adapter(self, id: int) -> None:
        """Removes it once its last request is over."""
        self._retired.add(id)
        self._remove_unused_adapters()

    def step(self) -> None:
        batch = self.scheduler.schedule()
        scheduled = self._encode_images(batch.scheduled)
        lookahead, self._lookahead = self._lookahead, None
        if lookahead and lookahead.preemptions == self.scheduler.num_preemptions:
            scheduled, logits = self._join(lookahead, batch.changes, scheduled)
        else:
            logits = self._execute(batch.changes, scheduled)
        self._emit()
        self._output.forget_finished()
        if logits is not None:
            self._sample_all(scheduled, logits)
        self._remove_unused_adapters()

    def fail_step(self) -> None:
        """Ends all running sequences after an exception, or, where none ran, the waiting ones, which must have caused
        it."""
        self._emit()
        self._lookahead = None
        self._output.end(self.scheduler.drop_running() or self.scheduler.drop_all(), EngineFailed(FAILED))
        self._output.forget_finished()

    def end_all(self, error: ServiceError) -> None:
        self._emit()
        self._lookahead = None
        self._output.end(self.scheduler.drop_all(), error)
        self._output.forget_finished()

    def lose(self, error: ServiceError) -> None:
        """Ends all sequences without what was sampled last: it may be of a step that was broken off."""
        self._output.discard()
        self.end_all(error)

    def close(self) -> None:
        self._executor.close()

    def _remove_unused_adapters(self) -> None:
        if not self._retired:
            return
        unused = self._retired - {sequence.adapter for sequence in self._output.requests}
        for id in unused:
            self._executor.remove_adapter(id)
        self._retired -= unused

    # --- execution ---

    def _encode_images(self, scheduled: list[ScheduledSequence]) -> list[ScheduledSequence]:
        """Without the sequences whose images fail: they must not cost the others their step."""
        failed = []
        for entry in scheduled:
            if entry.sequence.images is None:
                continue
            try:
                self._executor.encode_images(entry.row())
            except Exception:
                logger.exception("an image of request %s could not be encoded", entry.sequence.job.id)
                failed.append(entry.sequence)
        if not failed:
            return scheduled
        self._emit()  # their last tokens are delivered before the error
        self._fail(failed, "its images cannot be encoded")
        return [entry for entry in scheduled if not entry.sequence.finished]

    def _join(
        self, lookahead: Lookahead, changes: list[CacheChange], scheduled: list[ScheduledSequence]
    ) -> tuple[list[ScheduledSequence], Tensor | None]:
        computed, others = lookahead.split(scheduled)
        if not computed:
            return others, self._execute(changes, others)
        logits = select_rows(lookahead.logits, [lookahead.rows[entry.sequence] for entry in computed])
        if not others:
            self._execute(changes, others)
            return computed, logits
        logits = logits.clone()  # they last until the next step
        more = self._execute(changes, others)
        return [*computed, *others], None if more is None else torch.cat([logits, more])

    def _execute(self, changes: list[CacheChange], scheduled: list[ScheduledSequence]) -> Tensor | None:
        """None where there is nothing to compute, or no memory for it: it is scheduled again in smaller steps."""
        if not scheduled and not changes:
            return None
        for request in (self._output.requests[entry.sequence] for entry in scheduled):
            request.started_at = request.started_at or time.monotonic()
        try:
            logits = self._executor.execute(Step(changes, [entry.row() for entry in scheduled]))
        except OutOfMemory as error:
            self._shrink(error, scheduled)
            return None
        return logits if scheduled else None

    def _shrink(self, error: Exception, scheduled: list[ScheduledSequence]) -> None:
        if not self.scheduler.shrink():
            raise error
        logger.warning("out of memory in a step of %d sequences, trying smaller ones: %s", len(scheduled), error)

    # --- sampling ---

    def _sample_all(self, scheduled: list[ScheduledSequence], logits: Tensor) -> None:
        sampling = [entry for entry in scheduled if entry.samples]
        rows = self._score_prompts(scheduled, logits)
        for entry in scheduled:
            entry.sequence.num_computed += entry.num_tokens - len(entry.draft)
        try:
            self._verify_drafts(
                [(entry, rows[entry.sequence]) for entry in sampling], logits, alone=len(sampling) == len(scheduled)
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._lookahead = None
            for sequence in [entry.sequence for entry in sampling if not entry.sequence.finished]:
                sequence.rewind()
            self._shrink(error, scheduled)
        if not self._executor.asynchronous:
            self._emit()

    def _score_prompts(self, scheduled: list[ScheduledSequence], logits: Tensor) -> dict[Sequence, int]:
        """Computes prompt logprobs. Returns the row of logits that each sequence samples its next token from; the rows
        before it are the prompt's."""
        rows = {}
        first_rows = accumulate((entry.num_logits for entry in scheduled), initial=0)
        for entry, row in zip(scheduled, first_rows, strict=False):
            rows[entry.sequence] = row
            if entry.scores_prompt:
                add_prompt_logprobs(entry, logits[row : row + entry.num_tokens])
                rows[entry.sequence] += entry.num_tokens - 1
        return rows

    def _verify_drafts(self, sampling: list[tuple[ScheduledSequence, int]], logits: Tensor, *, alone: bool) -> None:
        """Samples a token for each from the first of its rows, then from the rows behind it as long as the draft token
        was the sampled one: each as if in a step of its own. `alone`: no prompt was computed in the same step."""
        alone = alone and not any(entry.draft for entry, _ in sampling)
        for depth in count():
            sampling = [(entry, row) for entry, row in sampling if not entry.sequence.finished]
            if not sampling:
                return
            self._sample(
                [entry.sequence for entry, _ in sampling],
                select_rows(logits, [row + depth for _, row in sampling]),
                alone,
            )
            if any(entry.draft for entry, _ in sampling):
                self._emit()
            for entry, _ in sampling:
                if entry.draft and not _is_accepted(entry, depth):
                    self.scheduler.record_acceptance(entry, depth)
            sampling = [(entry, row) for entry, row in sampling if _is_accepted(entry, depth)]
            for entry, _ in sampling:
                entry.sequence.num_computed += 1

    def _sample(self, sequences: list[Sequence], logits: Tensor, alone: bool) -> None:
        sequences, logits = self._without(
            fill_grammar_masks(sequences), "its grammar allows no token", sequences, logits, _stuck
        )
        if not sequences:
            return
        result = SampleResult(logits, sequences)
        if alone:
            self._lookahead = launch(self._executor, sequences, result.tokens, self.scheduler.num_preemptions)
        sampled = result.token_ids()
        failing = [row for row, token in enumerate(sampled) if token is None]
        sequences, logits = self._without(failing, "its logits are not numbers", sequences, logits)
        valid = [token for token in sampled if token is not None]
        tokens = [sequence.force_token(token) for sequence, token in zip(sequences, valid, strict=True)]
        logprobs = compute_logprobs(logits, sequences, tokens)
        for sequence, given, token in zip(sequences, valid, tokens, strict=True):
            if self._lookahead and token != given:  # the lookahead step went on with another token
                self._lookahead.rows.pop(sequence, None)
            sequence.append(token)
            self._output.append(sequence, token, logprobs.get(sequence))

    def _without(
        self, failing: list[int], reason: str, sequences: list[Sequence], logits: Tensor, to_error: ToError = _failed
    ) -> tuple[list[Sequence], Tensor]:
        if not failing:
            return sequences, logits
        self._fail([sequences[row] for row in failing], reason, to_error)
        others = [row for row in range(len(sequences)) if row not in failing]
        return [sequences[row] for row in others], select_rows(logits, others)

    # --- output ---

    def _emit(self) -> None:
        self._fail(self._output.emit(), "its tokens give no text")

    def _fail(self, sequences: Iterable[Sequence], reason: str, to_error: ToError = _failed) -> None:
        """Ends these sequences, and no other."""
        for sequence in sequences:
            error = to_error(sequence)
            level = logging.INFO if isinstance(error, InvalidRequest) else logging.ERROR
            logger.log(level, "request %s failed: %s", sequence.job.id, reason)
            self.scheduler.fail(sequence)
            self._output.end([sequence], error)


def _is_accepted(entry: ScheduledSequence, depth: int) -> bool:
    """Whether the token just sampled is the draft's, so that the next one can be sampled from the same step."""
    matches = depth < len(entry.draft) and entry.draft[depth] == entry.sequence.tokens[-1]
    return matches and not entry.sequence.finished


def add_prompt_logprobs(entry: ScheduledSequence, logits: Tensor) -> None:
    """A prompt that is computed again after a preemption is scored again."""
    sequence = entry.sequence
    if entry.start == 0:
        sequence.prompt_logprobs = []
    following = list(sequence.job.prompt[entry.start + 1 : entry.end + 1])
    sequence.prompt_logprobs += compute_prompt_logprobs(logits, following, sequence.job.sampling.prompt_logprobs or 0)

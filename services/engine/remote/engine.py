"""An engine whose tokens other servers compute: prompt, text and limits are of this server, weights are not read."""

from collections.abc import AsyncGenerator, Sequence
from hashlib import sha256

from services.engine.base import ANYBODY, EngineStats, ImageReader, Job, Piece, Tokenizer, UpstreamAddress
from services.engine.execution.piece_stream import PieceStream
from services.engine.job_check import checked_limit
from services.engine.remote import model_info
from services.engine.remote.answer import Answer
from services.engine.remote.kinds.base import RemoteJob
from services.engine.remote.model_info import ModelInfo
from services.engine.remote.router import Router
from services.engine.remote.upstream import Upstream
from services.engine.streamer import RequestStreamer
from services.engine.token_texts import TokenTexts
from services.errors import Unavailable


class RemoteEngine:
    images: ImageReader | None = None  # prompts go out as token ids alone
    device, dtype = "remote", "remote"

    def __init__(
        self, model: ModelInfo, router: Router, *, max_model_len: int | None = None, share_prefixes: bool = False
    ) -> None:
        self.tokenizer: Tokenizer = model.tokenizer
        self._model = model
        self.router = router
        self._limit = min(max_model_len or model.max_length, model.max_length)
        self._shares_prefixes = share_prefixes
        self._texts = TokenTexts(model.tokenizer)
        self._markers = self._texts.markers
        self._answers: set[Answer] = set()
        self._stopping = False
        self._num_queried = 0
        self._num_reused = 0

    @classmethod
    def load(
        cls,
        *,
        source: str,
        upstreams: Sequence[UpstreamAddress],
        max_model_len: int | None = None,
        share_prefixes: bool = False,
        timeout_s: float = 300,
    ) -> "RemoteEngine":
        """`timeout_s`: without a byte from an upstream. None of them needs to be there yet."""
        router = Router([Upstream(address, timeout_s=timeout_s) for address in upstreams])
        model = model_info.read(source)
        return cls(model, router, max_model_len=max_model_len, share_prefixes=share_prefixes)

    @property
    def max_length(self) -> int:
        """The least of what the model, the settings and those upstreams allow that have answered."""
        known = (upstream.max_length for upstream in self.router.upstreams)
        return min([self._limit, *(length for length in known if length)])

    def start(self) -> None:
        self.router.start()

    async def stop(self) -> None:
        """Ends what is running with Unavailable."""
        self._stopping = True
        for answer in list(self._answers):
            await answer.fail(Unavailable("The model is being unloaded"))
        await self.router.stop()

    async def submit(self, job: Job) -> AsyncGenerator[Piece, None]:
        if self._stopping:
            raise Unavailable("The model is being unloaded")
        limit = checked_limit(
            job, max_length=self.max_length, vocabulary=self._model.vocabulary, takes_images=self.images is not None
        )
        remote = RemoteJob(job, limit, self._salt(job), self._markers, self.tokenizer, self._texts)
        streamer = RequestStreamer(self.tokenizer, job.prompt, job.sampling, self._model.eos)
        answer = Answer(remote, streamer, self.router, self._end)
        # the choices of one request are admitted together: what one of them is refused, all are
        is_first = all(each.id != job.id for each in self._answers)
        self._answers.add(answer)
        await answer.admitted(wait=is_first)
        return PieceStream(answer.mailbox, answer.cancel)

    def _salt(self, job: Job) -> str | None:
        """Upstreams know one client only: without it, what one caller has sent would answer another one sooner."""
        if self._shares_prefixes or job.owner == ANYBODY:
            return job.cache_salt or None
        return sha256(f"{job.owner}\0{job.cache_salt}".encode()).hexdigest()

    def _end(self, answer: Answer) -> None:
        self._answers.discard(answer)
        if answer.has_output:
            self._num_queried += answer.num_prompt
            self._num_reused += answer.cached_tokens

    def stats(self) -> EngineStats:
        answers = tuple(self._answers)  # read from any thread
        running = sum(answer.has_output for answer in answers)
        upstreams = tuple(upstream.stats() for upstream in self.router.upstreams)
        return EngineStats(
            running=running,
            waiting=len(answers) - running,
            prefix_queried=self._num_queried,
            prefix_reused=self._num_reused,
            stalled=not any(upstream.healthy for upstream in upstreams),
            upstreams=upstreams,
        )

    async def settle(self) -> None:
        """Returns once nothing runs."""
        for answer in list(self._answers):
            await answer.settle()

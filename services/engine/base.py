"""The seam between the service and whatever makes tokens: plain values and protocols, no tensors."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

FinishReason = Literal["stop", "length"]
ANYBODY = "local"  # the owner of everything where there are no keys

Message = dict[str, Any]  # one message as chat templates read it: role, content, tool_calls, ...


class Tokenizer(Protocol):
    """The part of a `transformers` tokenizer that the text side uses."""

    chat_template: str | dict[str, str] | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> Any: ...

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> Any: ...

    def __len__(self) -> int: ...

    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: Any) -> Any: ...


MAX_SOURCE = 250_000  # characters of a grammar; the library bounds what it makes of them


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an answer must look like. Compiled by the engine that makes its tokens, refused by its `submit`.

    A Lark grammar begins with the rule `start`, holds JSON schemas as `%json {...}`, and names markers as
    `<tool_call>`, or `<"[TOOL_CALLS]">` where they have no angle brackets of their own: the one token that the
    tokenizer has for it, else its text. `...<tool_call>` is any text up to that marker and the marker itself,
    `.../[a-z]*/ <tool_call>` one that matches, and in which the marker's text does not occur. JSON is held to one line.
    A schema with `"x-guidance": {"lenient": true}` at its top is enforced as far as it can be, instead of refused for a
    keyword that cannot.
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str  # JSON, a regular expression, or a grammar in llguidance's Lark dialect or in GBNF
    param: str = "response_format"  # the part of the request that it came from
    before: str = ""  # in Lark, what may or must come first: `...<"</think>">`


@dataclass(frozen=True, slots=True)
class ThinkingLimit:
    """An answer that begins with thinking ends that after so many tokens, if it has not before."""

    tokens: int
    end: int  # the token that ends it
    begin: int | None = None  # the answer's first token, if it thinks at all; None: the prompt has begun it


@dataclass(frozen=True, slots=True)
class SamplingParams:
    max_tokens: int | None = None  # None: up to the model's length
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0  # of the likeliest token's probability
    repetition_penalty: float = 1.0  # divides or multiplies what prompt or answer has
    frequency_penalty: float = 0.0  # subtracted for each time the answer has a token
    presence_penalty: float = 0.0  # subtracted once if it has it at all
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added
    min_tokens: int = 0  # before them nothing ends the answer
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False  # the stop string or token in the text
    logprobs: int | None = None  # alternatives reported with each token; None: not even its own logprob
    prompt_logprobs: int | None = None  # the same of the prompt's tokens, which are all read then, none found
    grammar: GrammarSpec | None = None
    thinking: ThinkingLimit | None = None

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def changes_logits(self) -> bool:
        return self.grammar is not None or bool(self.logit_bias) or self.penalises

    def ends(self, eos: frozenset[int]) -> frozenset[int]:
        """The tokens that end the answer."""
        return eos.difference(eos if self.ignore_eos else ()).union(self.stop_token_ids)


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What holds where a request names nothing; None: what it means to name nothing to OpenAI."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # 0 and -1: off
    min_p: float | None = None
    repetition_penalty: float | None = None

    @property
    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image (PNG, JPEG, WebP or GIF), of which the head has been read and the size been checked."""

    data: bytes
    width: int  # pixels, before it is turned as its EXIF data say
    height: int
    max_side: int | None = None  # pixels of the longer side, to which it is to be scaled down


class UnreadablePicture(ValueError):
    """What follows a picture's head is no image."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Image:
    """A picture as one model takes it."""

    digest: bytes  # of what is on it
    text: str  # what its placeholder in a prompt is replaced by
    num_tokens: int  # of these that stand for what is on it
    inputs: Mapping[str, Any]  # numpy arrays, as the vision part names them

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.inputs.values())


@dataclass(frozen=True, slots=True, eq=False)
class PlacedImage:
    image: Image
    positions: tuple[int, ...]  # of the prompt, one for each of its tokens


class ImageReader(Protocol):
    """The part of a vision-language model that turns pictures into prompts."""

    placeholder: str  # what a chat template writes for an image
    token: int  # what its replacement has for each piece of it

    def read(self, picture: Picture) -> Image:
        """Blocking: call it from a thread. Raises UnreadablePicture, and ValueError for what the model cannot take."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """What is submitted: token ids in, text pieces out."""

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0  # lower ones run first, among their owner's
    flex: bool = False  # in what capacity all others leave, whoever's they are
    param: str = "messages"  # the part of the request that the prompt is made of
    truncated: int | None = None  # tokens that were cut off the prompt; None: nobody asked for it
    images: tuple[PlacedImage, ...] = ()  # in the order of their positions
    owner: str = ANYBODY  # who shares slots and queues with the others in equal parts, and finds only its own prefixes
    cache_salt: str = ""  # prefixes are found under the same one only
    num_public: int = 0  # leading tokens that are the server's own text: every owner may find them
    adapter: str | None = None  # LoRA; None: the model as it is
    sampled: tuple[int, ...] = ()  # the answer's first tokens, which another process has delivered: it goes on behind
    affinity: str = ""  # jobs with the same one begin alike; empty: nothing is known but the prompt itself


@dataclass(frozen=True, slots=True)
class Times:
    """What one answer took, in seconds: waiting, until its first token, from there to its last."""

    queued: float
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token as the model itself weighed it, before temperature and penalties."""

    text: str
    raw: bytes  # its own, perhaps part of a character
    logprob: float  # not a number for a prompt's first token, which nothing weighed
    top: tuple["TokenLogprob", ...] = ()
    id: int | None = field(default=None, compare=False)  # None: not known, as in answers that were stored


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that became readable, with the tokens it took; `text` may be empty."""

    text: str
    token_ids: tuple[int, ...] = ()
    finish: FinishReason | None = None  # None: more to come
    logprobs: tuple[TokenLogprob, ...] = ()  # of those tokens whose text this is, if they were asked for
    cached_tokens: int = 0  # of the prompt, found in the cache; with the first piece and the last
    times: Times | None = None  # with the last piece
    stop: str | None = None  # the stop string that ended it; with the last piece
    prompt: tuple[TokenLogprob, ...] = ()  # its tokens, if that was asked for; with the first piece


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """A server that computes for a remote engine."""

    url: str  # with or without /v1 at its end
    key: str | None = field(default=None, repr=False)
    kind: str | None = None  # a name of `services.engine.remote.kinds.KINDS`; None: the server is asked
    model: str | None = None  # as the server calls it; None: the first that it lists


@dataclass(frozen=True, slots=True)
class UpstreamStats:
    name: str  # host and port
    healthy: bool
    running: int = 0  # requests
    requests: int = 0  # ever sent there
    failures: int = 0  # requests that could not be sent, or were not answered to their end


@dataclass(frozen=True, slots=True)
class EngineStats:
    running: int = 0
    waiting: int = 0
    waiting_flex: int = 0  # those of them that wait for what capacity is left
    cache_used: int = 0  # tokens held in the KV cache
    cache_size: int = 0  # tokens it can hold
    prefix_queried: int = 0  # prompt tokens looked for in the cache, ever
    prefix_reused: int = 0  # and found there
    drafted: int = 0  # tokens that were guessed, ever
    accepted: int = 0  # and right
    preemptions: int = 0  # sequences sent back to the queue, for want of memory or for another owner, ever
    stalled: bool = False  # it has been at one step for too long, or none of its upstreams answers
    lost: bool = False  # it cannot compute any more, and must be loaded again
    upstreams: tuple[UpstreamStats, ...] = ()  # of a remote engine


class Engine(Protocol):
    """What answers chats.

    `submit` raises PromptTooLong, Overloaded or Unavailable at once; closing what it returns, at any time and whether
    or not it was ever iterated, takes the sequence out of the batch. One with an attribute `resumes` that is true is
    given jobs with `sampled` tokens, too.
    """

    tokenizer: Tokenizer
    images: ImageReader | None  # None: it takes text only
    max_length: int  # tokens of prompt and answer together
    device: str
    dtype: str

    def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def submit(self, job: Job) -> AsyncGenerator[Piece, None]: ...

    def stats(self) -> EngineStats: ...


@runtime_checkable
class TakesAdapters(Protocol):
    """An Engine that applies LoRA adapters to the jobs that name them."""

    async def load_adapter(self, name: str, folder: str) -> None:
        """Takes the place of one with the same name. Raises UnusableModel for a folder that cannot be applied."""
        ...

    def unload_adapter(self, name: str) -> None:
        """For new jobs at once; running ones are answered to their end."""
        ...


@dataclass(frozen=True, slots=True)
class TextPrompts:
    """What an embedding model wants in front of texts, by the use that is made of them."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None  # the name of the one that every text gets, where a request names none
    pools: bool = True  # whether the prompt's tokens are part of what is pooled


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Little-endian float32 vectors, row after row, in the order of the inputs."""

    data: bytes
    dimensions: int

    def rows(self) -> list[memoryview]:
        width = 4 * self.dimensions
        view = memoryview(self.data)
        return [view[start : start + width] for start in range(0, len(view), width)]


class Pair(tuple[int, ...]):
    """Two texts as one input of a cross-encoder; `types` tell to which of them each token belongs."""

    types: Sequence[int]
    texts: tuple[str, str]
    is_cut: bool  # whether the tokens are not all of the texts

    def __new__(
        cls, tokens: Sequence[int], types: Sequence[int], texts: tuple[str, str] = ("", ""), *, is_cut: bool = False
    ) -> "Pair":
        pair = super().__new__(cls, tokens)
        pair.types, pair.texts, pair.is_cut = types, texts, is_cut
        return pair


class EmbeddingEngine(Protocol):
    """What turns token ids into vectors; `embed` may be called concurrently and never blocks the event loop."""

    tokenizer: Tokenizer
    max_length: int
    dimensions: int
    prompts: TextPrompts
    device: str
    dtype: str

    def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def embed(self, inputs: Sequence[Sequence[int]], owner: str = ANYBODY) -> Embeddings: ...

    def stats(self) -> EngineStats: ...

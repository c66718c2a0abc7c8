"""What the model says -> the events of Anthropic's stream, or the one message they add up to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from app.spec import Arguments, Event, Finish, Head, Reasoning, Text, ToolCall, as_object
from schemas.anthropic_answer_schema import (
    AnthropicMessage,
    AnthropicUsage,
    BlockDelta,
    BlockStart,
    BlockStop,
    ContentDelta,
    InputDelta,
    MessageDelta,
    MessageEvent,
    MessageStart,
    MessageStop,
    OutputBlock,
    SignatureDelta,
    StopDetails,
    StopReason,
    TextDelta,
    TextOutput,
    ThinkingDelta,
    ThinkingOutput,
    ThinkingTokens,
    ToolUseOutput,
)


@dataclass(frozen=True, slots=True)
class ThinkingOutputMode:
    """The form in which they are answered. All of them are sealed; `shown`: with their text."""

    seal: Callable[[str], str]
    shown: bool


class EventEncoder:
    """Of one answer: which block is open. Without `thinking` what the model thinks is left out."""

    def __init__(self, max_tokens: int, thinking: ThinkingOutputMode | None = None) -> None:
        self._max_tokens = max_tokens
        self._thinking = thinking
        self._thinking_text: list[str] = []  # of the open block
        self._index = -1
        self._open: OutputBlock | None = None
        self._has_calls = False

    def events(self, event: Event) -> Iterator[MessageEvent]:
        match event:
            case Head():
                yield MessageStart(message=_message(event))
            case Text(text) if text:
                yield from self._within(TextOutput())
                yield self._delta(TextDelta(text=text))
            case Reasoning(text) if text and self._thinking:
                yield from self._within(ThinkingOutput())
                yield from self._think(text, self._thinking)
            case ToolCall(id, name):
                self._has_calls = True
                yield from self._begin(ToolUseOutput(id=id, name=name))
            case Arguments(text) if text:
                yield self._delta(InputDelta(partial_json=text))
            case Finish():
                yield from self._end()
                yield MessageDelta(delta=self._stop_details(event), usage=_usage(event))
                yield MessageStop()

    def _within(self, block: OutputBlock) -> Iterator[MessageEvent]:
        if type(self._open) is not type(block):
            yield from self._begin(block)

    def _think(self, text: str, thinking: ThinkingOutputMode) -> Iterator[MessageEvent]:
        self._thinking_text.append(text)
        if thinking.shown:
            yield self._delta(ThinkingDelta(thinking=text))

    def _begin(self, block: OutputBlock) -> Iterator[MessageEvent]:
        yield from self._end()
        self._open = block
        self._index += 1
        yield BlockStart(index=self._index, content_block=block)

    def _delta(self, delta: ContentDelta) -> BlockDelta:
        return BlockDelta(index=self._index, delta=delta)

    def _end(self) -> Iterator[MessageEvent]:
        if self._thinking_text and self._thinking:
            yield self._delta(SignatureDelta(signature=self._thinking.seal("".join(self._thinking_text))))
            self._thinking_text.clear()
        if self._open:
            yield BlockStop(index=self._index)
        self._open = None

    def _stop_details(self, finish: Finish) -> StopDetails:
        return StopDetails(stop_reason=self._reason(finish), stop_sequence=finish.stop)

    def _reason(self, finish: Finish) -> StopReason:
        if finish.reason == "length":
            return "max_tokens" if finish.completion_tokens >= self._max_tokens else "model_context_window_exceeded"
        if finish.stop is not None:
            return "stop_sequence"
        # chat completions end a forced call with "stop"
        return "tool_use" if self._has_calls else "end_turn"


def _message(head: Head) -> AnthropicMessage:
    id = "msg_" + head.id.rpartition("-")[2]
    return AnthropicMessage(id=id, model=head.model, usage=AnthropicUsage(input_tokens=head.prompt_tokens))


def _usage(finish: Finish) -> AnthropicUsage:
    return AnthropicUsage(
        input_tokens=finish.prompt_tokens - finish.cached_tokens,
        cache_read_input_tokens=finish.cached_tokens,
        output_tokens=finish.completion_tokens,
        output_tokens_details=ThinkingTokens(thinking_tokens=finish.reasoning_tokens),
    )


class MessageBuilder:
    """The sum of a stream, made the way Anthropic's own clients make it."""

    def __init__(self) -> None:
        self._message: AnthropicMessage | None = None
        self._inputs: dict[int, str] = {}

    def add(self, event: MessageEvent) -> None:
        match event:
            case MessageStart(message=message):
                self._message = message
            case BlockStart(content_block=block):
                self._begun.content.append(block)
            case BlockDelta(index=index, delta=InputDelta(partial_json=text)):
                self._inputs[index] = self._inputs.get(index, "") + text
            case BlockDelta(index=index, delta=delta):
                _add(self._begun.content[index], delta)
            case MessageDelta(delta=stop, usage=usage):
                self._begun.stop_reason, self._begun.stop_sequence = stop.stop_reason, stop.stop_sequence
                self._begun.usage = usage

    def message(self) -> AnthropicMessage:
        for index, text in self._inputs.items():
            block = self._begun.content[index]
            assert isinstance(block, ToolUseOutput)
            block.input = as_object(text)
        return self._begun

    @property
    def _begun(self) -> AnthropicMessage:
        assert self._message
        return self._message


def _add(block: OutputBlock, delta: ContentDelta) -> None:
    match block, delta:
        case TextOutput(), TextDelta(text=text):
            block.text += text
        case ThinkingOutput(), ThinkingDelta(thinking=thinking):
            block.thinking += thinking
        case ThinkingOutput(), SignatureDelta(signature=signature):
            block.signature = signature

"""A request prepared for one model, once: the jobs that answer it, and how their output is parsed."""

from dataclasses import dataclass, field, replace
from typing import Literal

from schemas.chat_schema import ChatCompletionRequest
from services import affinity
from services.chat.formats.base import ChatFormat, OutputFormat
from services.chat.formats.lark_text import lark, marker
from services.chat.request import prompt, sampling, tool_images
from services.chat.request.contents import Illustration
from services.chat.request.encoding import MAX_TOKENIZE_CHARS, Room
from services.chat.request.preparation_cache import PreparationCache
from services.chat.request.prompt import Prompt
from services.chat.request.public_prefix import num_public, public_prefix
from services.chat.request.reasoning import ReasoningConfig, reasoning_config
from services.chat.request.render_thoughts import render_thoughts
from services.chat.request.render_tools import declarations, render_tools
from services.chat.request.tool_grammar import tool_grammar
from services.chat.request.tool_selection import ToolSelection, select_tools
from services.engine.base import GrammarSpec, Job, Message, ThinkingLimit, Tokenizer
from services.errors import UnsupportedParameter

TAIL = 32  # tokens of the prompt in which its last marker is


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    jobs: tuple[Job, ...]  # one for each choice, all of one prompt
    output: OutputFormat
    ignored: tuple[str, ...] = ()  # parameters that this model has no use for

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.jobs[0].prompt

    @property
    def truncated(self) -> int | None:
        return self.jobs[0].truncated


@dataclass(frozen=True, slots=True)
class Target:
    """What of a model, and of the server's settings, decides how a request is prepared."""

    tokenizer: Tokenizer
    format: ChatFormat
    max_length: int  # tokens of prompt and answer together
    max_new_tokens: int | None = None  # where a request sets no limit
    system_prompt: str | None = None
    max_tokenize_chars: int = MAX_TOKENIZE_CHARS


@dataclass(frozen=True, slots=True)
class PromptInput:
    """What the prompt is made of."""

    messages: list[Message]
    illustration: Illustration | None = None
    limit: int | None = None  # tokens; None: they are only counted
    cache: PreparationCache = field(default_factory=PreparationCache)


def prepare(
    id: str,
    request: ChatCompletionRequest,
    source: PromptInput,
    target: Target,
    owner: str,
    answer: GrammarSpec | None = None,
) -> PreparedRequest:
    """`request` has its model's defaults (`sampling.apply_defaults`). `answer`: the grammar it asks for, as
    `prompt.check` returns it.

    Blocking: a long prompt takes long enough to render to be felt by every stream of the event loop.
    """
    selection = select_tools(request)
    reasoning = reasoning_config(request, target.format)
    max_tokens = prompt.max_tokens(request, target.max_new_tokens)
    keep = sampling.kept_tokens(request, max_tokens, target.max_length)
    rendered = _prompt(request, source, target, selection, reasoning, keep)
    state = _thinking(rendered, target)
    output = replace(_output(request, target.format, selection, state), answer_id=id)
    content = output.answer.content if output.answer and not output.in_content else ()
    grammar = tool_grammar(selection, target.format.tools, answer, content) if selection else answer
    params = prompt.sampling(
        request,
        max_tokens,
        stop=tuple(request.stop) if output.is_plain else (),
        grammar=replace(grammar, before=_before(output, state, () if selection else content)) if grammar else None,
        thinking=_limit(reasoning.budget, output, state, target),
    )
    public = public_prefix(target.tokenizer, target.system_prompt)
    job = Job(
        id,
        rendered.ids,
        params,
        priority=prompt.priority(request),
        flex=prompt.served_tier(request.service_tier) == "flex",
        truncated=rendered.truncated,
        images=rendered.images,
        owner=owner,
        cache_salt=request.cache_salt or "",
        num_public=num_public(rendered.ids, public),
        affinity=affinity.of_answer(id),
    )
    return PreparedRequest(tuple(sampling.choices(job, request.n)), output, reasoning.ignored)


def _prompt(
    request: ChatCompletionRequest,
    source: PromptInput,
    target: Target,
    selection: ToolSelection | None,
    reasoning: ReasoningConfig,
    keep: int | None,
) -> Prompt:
    shown = {"tools": declarations(selection.tools)} if selection and target.format.shows_tools else {}
    template = prompt.template(request, **shown, **reasoning.arguments)
    messages = render_tools(tool_images.shown_by_user(source.messages), selection, target.format)
    messages = render_thoughts(messages, target.format)
    text_keep = None if source.illustration else keep
    if source.limit:
        room = Room(source.limit, text_keep)
    else:
        room = Room.to_count(target.max_tokenize_chars, target.max_length, text_keep)
    arguments = (messages, target.tokenizer, template, source.illustration, room)
    rendered = source.cache.prompt(arguments, lambda: prompt.encoded(*arguments))
    return rendered if keep is None else rendered.last(keep)


State = Literal["open", "begun", "over"]


def _thinking(rendered: Prompt, target: Target) -> State:
    """Whether the prompt ends inside a thinking block (begun), behind one (over), or the model may open one."""
    thinking = target.format.thinking
    if thinking is None:
        return "over"
    end = str(target.tokenizer.decode(list(rendered.ids[-TAIL:]))).rstrip()
    if answer := target.format.tools.answer:
        return "open" if end.endswith(answer.opening) else "over"
    if end.endswith(thinking.end):
        return "over"
    return "begun" if end.endswith((thinking.begin, f"{thinking.begin}{thinking.label}".rstrip())) else "open"


def _output(
    request: ChatCompletionRequest, format: ChatFormat, selection: ToolSelection | None, state: State
) -> OutputFormat:
    answer = format.tools.answer
    if format.thinking is None and selection is None and answer is None and not format.content_marks:
        return OutputFormat()
    return OutputFormat(
        format.thinking,
        state == "begun",
        format.tools if selection else None,
        selection.names if selection else frozenset(),
        selection.parameters if selection else {},
        selection.callees if selection else {},
        answer,
        in_content=answer is not None and state == "over",
        content_marks=format.content_marks,
        # stop strings are the content's: in thoughts and calls they would break it
        stop=tuple(request.stop),
        include_stop=request.include_stop_str_in_output,
        min_tokens=sampling.min_tokens(request),
    )


def _before(output: OutputFormat, state: State, content: tuple[str, ...]) -> str:
    """What may come before an answer that is held to a form: free thinking, and what begins its content."""
    if output.thinking is None or state == "over":
        return ""
    if output.answer:
        return f"{output.answer.earlier} {lark(content)}"
    end = rf"...{marker(output.thinking.end)} /\n{{0,2}}/"
    return end if state == "begun" else f"({marker(output.thinking.begin)} {end})?"


def _limit(budget: int | None, output: OutputFormat, state: State, target: Target) -> ThinkingLimit | None:
    if budget is None or output.thinking is None or state == "over":
        return None
    begin = None if state == "begun" else _token(output.thinking.begin, target)
    return ThinkingLimit(budget, end=_token(output.thinking.end, target), begin=begin)


def _token(marker: str, target: Target) -> int:
    tokens = target.tokenizer.encode(marker, add_special_tokens=False)
    if len(tokens) != 1:
        raise UnsupportedParameter("thinking_token_budget", "needs a model whose thinking is marked by single tokens")
    return tokens[0]

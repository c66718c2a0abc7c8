"""Tokenises texts and chats, and detokenises ids. Work that grows with the length runs in threads."""

import asyncio
from collections.abc import Iterator, Sequence

import orjson

from schemas.chat_schema import ChatCompletionRequest
from schemas.tokenize_schema import (
    MAX_TOKENS,
    Detokenized,
    DetokenizeRequest,
    InputTokens,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
)
from services.chat.request.encoding import MAX_TOKENIZE_CHARS, Room, check_countable
from services.chat.request.refusals import ReportIgnored, report_nothing
from services.chat_service import ChatService
from services.engine.base import Engine
from services.errors import InvalidRequest
from services.model_service import ModelManager
from services.text_service import TextService

CHAT_PARAMETERS = {"add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"}
STEP = 50_000  # tokens that are serialised at once
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
TEXT_PARAMETERS = {"add_special_tokens"}


class TokenizeService:
    def __init__(
        self,
        models: ModelManager,
        chat: ChatService,
        texts: TextService | None = None,
        max_chars: int = MAX_TOKENIZE_CHARS,
    ) -> None:
        self._models = models
        self._chat = chat
        self._texts = texts or TextService()
        self._max_chars = max_chars

    async def tokenize(self, request: TokenizeRequest, owner: str) -> bytes:
        """The answer as JSON."""
        _check(request)
        async with self._models.lease(request.model, "chat" if request.messages else None) as model:
            if request.messages:
                tokens = list(await self._chat.prompt_of(_chat_request(request), owner))
            else:
                tokens = await self._tokens(request, model.engine)
            return await asyncio.to_thread(lambda: as_json(_answer(tokens, request, model.engine)))

    async def _tokens(self, request: TokenizeRequest, engine: Engine) -> list[int]:
        assert request.prompt is not None
        room = Room.to_count(self._max_chars, engine.max_length)
        check_countable(request.prompt, room, "prompt")
        async with self._texts.room(len(request.prompt)):
            return await asyncio.to_thread(_encode, request, engine)

    async def detokenize(self, request: DetokenizeRequest) -> Detokenized:
        async with self._models.lease(request.model, None) as model:
            return Detokenized(prompt=await asyncio.to_thread(_decode, request.tokens, model.engine))

    async def info(self, model: str | None) -> TokenizerInfo:
        async with self._models.lease(model, None) as lease:
            tokenizer = lease.engine.tokenizer
            special = {name: getattr(tokenizer, name, None) for name in SPECIAL_TOKENS}
            return TokenizerInfo(
                model=lease.id,
                tokenizer_class=type(tokenizer).__name__,
                max_model_len=lease.engine.max_length,
                additional_special_tokens=[
                    str(each) for each in getattr(tokenizer, "extra_special_tokens", None) or ()
                ],
                chat_template=tokenizer.chat_template,
                **{name: None if token is None else str(token) for name, token in special.items()},
            )

    async def count(
        self, request: ChatCompletionRequest, owner: str, report_ignored: ReportIgnored = report_nothing
    ) -> InputTokens:
        return InputTokens(input_tokens=len(await self._chat.prompt_of(request, owner, report_ignored)))


def _check(request: TokenizeRequest) -> None:
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("Either 'prompt' or 'messages' is required", param="prompt")
    kind, others = ("prompt", CHAT_PARAMETERS) if request.messages is None else ("messages", TEXT_PARAMETERS)
    for name in sorted(others & request.model_fields_set):
        raise InvalidRequest("'%s' does not go with '%s'", name, kind)


def _chat_request(request: TokenizeRequest) -> ChatCompletionRequest:
    names = {"model", "messages", *CHAT_PARAMETERS} & request.model_fields_set
    return ChatCompletionRequest(**{name: getattr(request, name) for name in names})


def _encode(request: TokenizeRequest, engine: Engine) -> list[int]:
    assert request.prompt is not None
    return engine.tokenizer.encode(request.prompt, add_special_tokens=request.add_special_tokens)


def as_json(answer: Tokens) -> bytes:
    """Serialises in steps: one call would stall the event loop, and pydantic would validate the fields again."""
    lists: dict[str, Sequence[int | str]] = {
        "tokens": answer.tokens,
        **({} if answer.token_strs is None else {"token_strs": answer.token_strs}),
    }
    fields = [orjson.dumps({"count": answer.count, "max_model_len": answer.max_model_len})[1:-1]]
    fields += [b'"%b":[%b]' % (name.encode(), b",".join(_steps(values))) for name, values in lists.items()]
    return b"{%b}" % b",".join(fields)


def _steps(values: Sequence[int | str]) -> Iterator[bytes]:
    for start in range(0, len(values), STEP):
        yield orjson.dumps(values[start : start + STEP])[1:-1]


def _answer(tokens: list[int], request: TokenizeRequest, engine: Engine) -> Tokens:
    if len(tokens) > MAX_TOKENS:
        param = "prompt" if request.messages is None else "messages"
        raise InvalidRequest(f"'{param}' has {len(tokens)} tokens, at most {MAX_TOKENS} are answered", param=param)
    strs = engine.tokenizer.convert_ids_to_tokens(tokens) if request.return_token_strs else None
    # not validated: hundreds of thousands of values that come from the tokenizer
    return Tokens.model_construct(count=len(tokens), max_model_len=engine.max_length, tokens=tokens, token_strs=strs)


def _decode(tokens: list[int], engine: Engine) -> str:
    size = len(engine.tokenizer)
    for index, token in enumerate(tokens):
        if token >= size:
            raise InvalidRequest(f"This model's token ids are 0 to {size - 1}", param=f"tokens.{index}")
    return str(engine.tokenizer.decode(tokens))

"""POST /tokenize and /detokenize, GET /tokenizer_info, as vLLM has them."""

from fastapi import Response

from app.common.dependencies import Caller, Tokenizers, UnknownKeys
from app.common.json_body import JsonRoute
from app.common.router import TwinRouter
from schemas.ignored_keys import ignored_keys
from schemas.tokenize_schema import Detokenized, DetokenizeRequest, TokenizeRequest, TokenizerInfo, Tokens

router = TwinRouter(documented="", tags=["models"], route_class=JsonRoute)


@router.post("/tokenize", response_model=Tokens)
async def tokenize(body: TokenizeRequest, tokenizers: Tokenizers, caller: Caller, unknown: UnknownKeys) -> Response:
    headers = unknown.header(ignored_keys(body))
    return Response(await tokenizers.tokenize(body, caller.owner), headers=headers, media_type="application/json")


@router.post("/detokenize")
async def detokenize(
    body: DetokenizeRequest, response: Response, tokenizers: Tokenizers, unknown: UnknownKeys
) -> Detokenized:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await tokenizers.detokenize(body)


@router.get("/tokenizer_info")
async def tokenizer_info(tokenizers: Tokenizers, model: str | None = None) -> TokenizerInfo:
    """Special tokens and chat template, for clients that write prompts by themselves, as lm-evaluation-harness."""
    return await tokenizers.info(model)

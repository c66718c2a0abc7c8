"""/api/generate with a `suffix`: the text between it and the prompt, without a chat template."""

from app.spec import CompletionRequest, InvalidRequest, refuse
from app.spec.ollama.request import UNSUPPORTED, model, sampling
from schemas.ollama_schema import GenerateRequest

CHAT_ONLY = ("system", "images", "format", "think")
NO_LIMIT = 2**31 - 1  # tokens of an answer; the model's length is one


def completion(request: GenerateRequest) -> CompletionRequest:
    """Raises InvalidRequest for what goes with a chat only."""
    refuse(request, UNSUPPORTED)
    for name in CHAT_ONLY:
        if getattr(request, name):
            raise InvalidRequest("'%s' does not go with '%s'", name, "suffix")
    fields = sampling(request.options)
    limit = fields.pop("max_completion_tokens")
    fields |= {"model": model(request.model), "prompt": request.prompt, "suffix": request.suffix}
    fields |= {"logprobs": request.top_logprobs if request.logprobs else None}
    return CompletionRequest.model_validate({**fields, "max_tokens": limit or NO_LIMIT})

"""What every engine with a tokenizer of its own refuses of a job, before anything is computed."""

from collections.abc import Iterable

from services.engine.base import Job
from services.errors import InvalidRequest, PromptTooLong


def checked_limit(job: Job, *, max_length: int, vocabulary: int, takes_images: bool) -> int:
    """Tokens that the answer may have. Raises InvalidRequest, PromptTooLong."""
    if not job.prompt:
        raise InvalidRequest("The prompt is empty", param=job.param)
    if job.images and not takes_images:
        raise InvalidRequest("This model takes text only", param=job.param)
    room = max_length - len(job.prompt)
    if room < 1:
        raise PromptTooLong(len(job.prompt), max_length, param=job.param)
    _check_ids(job.param, (min(job.prompt), max(job.prompt)), vocabulary)
    _check_ids("logit_bias", job.sampling.logit_bias, vocabulary)
    _check_ids("stop_token_ids", job.sampling.stop_token_ids, vocabulary)
    return min(job.sampling.max_tokens or room, room)


def _check_ids(param: str, ids: Iterable[int], vocabulary: int) -> None:
    if not all(0 <= token < vocabulary for token in ids):
        raise InvalidRequest(f"'%s': this model's token ids are 0 to {vocabulary - 1}", param)

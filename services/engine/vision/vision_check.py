"""Whether images come out right in this engine; a model whose do not is served without them."""

from dataclasses import dataclass
from typing import Any

import torch

from services.engine.cpu.compiled_step import supports_logits_to_keep
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.runner import Runner
from services.engine.execution.runner_check import LogitsCheck, verify_logits
from services.engine.paged.runner import PagedRunner
from services.engine.vision.picture_reader import PictureReader, refuse_images
from services.engine.vision.vision import UnsupportedVision, Vision


@dataclass(frozen=True, slots=True)
class CheckedVision:
    vision: Vision
    check: LogitsCheck  # a prompt with an image, and what the model by itself says to it


def prepare_vision(model: Any, reader: PictureReader | None, *, required: bool) -> CheckedVision | None:
    """To be asked before the model is changed for a runner. `required`: it is an error if there is none."""
    if reader is None:
        return None
    try:
        vision = Vision(model, reader)
        return CheckedVision(vision, _check(model, vision))
    except Exception as error:  # whatever an unknown architecture may throw
        refuse_images(type(model).__name__, error, required)
    return None


def attach_vision(sight: CheckedVision | None, runner: Runner, *, required: bool) -> None:
    """Lets a runner see, if it says the same as the model by itself."""
    if sight is None:
        return
    model = sight.vision.model
    try:
        if not isinstance(runner, BatchedRunner | PagedRunner):
            raise UnsupportedVision("it runs one sequence at a time")
        verify_logits(runner.another(2 * len(sight.check.job.prompt), sight.vision), sight.check)
        runner.vision = sight.vision
    except Exception as error:
        refuse_images(type(model).__name__, error, required)


def _check(model: Any, vision: Vision) -> LogitsCheck:
    """The second step begins in the midst of the image."""
    job = vision.example()
    cut = job.images[0].positions[job.images[0].image.num_tokens // 2]
    steps = (cut, len(job.prompt) - cut - 2, 1, 1)
    ends = torch.tensor(steps, device=model.device).cumsum(0) - 1
    with torch.inference_mode():
        given = vision.whole(job)
        if supports_logits_to_keep(model):
            return LogitsCheck(job, steps, model(**given, use_cache=False, logits_to_keep=ends).logits[0])
        return LogitsCheck(job, steps, model(**given, use_cache=False).logits[0, ends])

"""Whether images come out right in this engine; a model whose do not is served without them."""

from dataclasses import dataclass
from typing import Any

import torch

from services.engine.cpu.compiled_step import keeps_logits
from services.engine.execution.batched_runner import BatchRunner
from services.engine.execution.runner import Runner
from services.engine.execution.runner_check import Check, compare
from services.engine.paged.runner import PagedRunner
from services.engine.vision.picture_reader import PictureReader, refuse_images
from services.engine.vision.vision import CannotSee, Vision


@dataclass(frozen=True, slots=True)
class Sight:
    vision: Vision
    check: Check  # a prompt with an image, and what the model by itself says to it


def sight_of(model: Any, reader: PictureReader | None, *, required: bool) -> Sight | None:
    """To be asked before the model is changed for a runner. `required`: it is an error if there is none."""
    if reader is None:
        return None
    try:
        vision = Vision(model, reader)
        return Sight(vision, _check(model, vision))
    except Exception as error:  # whatever an unknown architecture may throw
        refuse_images(type(model).__name__, error, required)
    return None


def give(sight: Sight | None, runner: Runner, *, required: bool) -> None:
    """Lets a runner see, if it says the same as the model by itself."""
    if sight is None:
        return
    model = sight.vision.model
    try:
        if not isinstance(runner, BatchRunner | PagedRunner):
            raise CannotSee("it runs one sequence at a time")
        compare(runner.another(2 * len(sight.check.job.prompt), sight.vision), sight.check)
        runner.vision = sight.vision
    except Exception as error:
        refuse_images(type(model).__name__, error, required)


def _check(model: Any, vision: Vision) -> Check:
    """The second step begins in the midst of the image."""
    job = vision.example()
    cut = job.images[0].positions[job.images[0].image.num_tokens // 2]
    steps = (cut, len(job.prompt) - cut - 2, 1, 1)
    ends = torch.tensor(steps, device=model.device).cumsum(0) - 1
    with torch.inference_mode():
        given = vision.whole(job)
        if keeps_logits(model):
            return Check(job, steps, model(**given, use_cache=False, logits_to_keep=ends).logits[0])
        return Check(job, steps, model(**given, use_cache=False).logits[0, ends])

"""Checks a model's images: where a runner's logits differ from the model's, it is served with text only."""

from dataclasses import dataclass, replace
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
    check: LogitsCheck  # a prompt with an image


def prepare_vision(model: Any, reader: PictureReader | None, *, required: bool) -> CheckedVision | None:
    """To be called before the model is changed for a runner. `required`: it is an error if there is none."""
    if reader is None:
        return None
    try:
        vision = Vision(model, reader)
        return CheckedVision(vision, _check(model, vision))
    except Exception as error:  # whatever an unknown architecture may throw
        refuse_images(type(model).__name__, error, required)
    return None


def attach_vision(checked: CheckedVision | None, runner: Runner, *, required: bool) -> None:
    """Gives a runner its vision, if its logits agree with the model's."""
    if checked is None:
        return
    model = checked.vision.model
    try:
        if not isinstance(runner, BatchedRunner | PagedRunner):
            raise UnsupportedVision("it runs neither over slots nor over pages")
        check = replace(checked.check, in_8_bits=runner.check.in_8_bits)
        verify_logits(runner.another(2 * len(check.prompt), checked.vision), check)
        runner.vision = checked.vision
    except Exception as error:
        refuse_images(type(model).__name__, error, required)


def _check(model: Any, vision: Vision) -> LogitsCheck:
    """The second step begins in the middle of the image."""
    prompt = vision.example()
    cut = prompt.images[0].positions[prompt.images[0].image.num_tokens // 2]
    steps = (cut, len(prompt.token_ids) - cut - 2, 1, 1)
    ends = torch.tensor(steps, device=model.device).cumsum(0) - 1
    with torch.inference_mode():
        given = vision.model_inputs(prompt)
        if supports_logits_to_keep(model):
            logits = model(**given, use_cache=False, logits_to_keep=ends).logits[0]
        else:
            logits = model(**given, use_cache=False).logits[0, ends]
    return LogitsCheck(prompt.token_ids, steps, logits, images=prompt)

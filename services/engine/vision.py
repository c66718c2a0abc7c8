"""The part of a model that sees: from images to what stands in their tokens' places, and where these are.

An image is looked at when the first of its tokens is computed, and not at all where the cache has them. What was seen
is kept for a while, so that a prompt that is read in several steps looks once.
"""

import inspect
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.engine.base import Image, Job, Picture, PlacedImage
from services.engine.pictures import PictureReader
from services.engine.scheduler import Work

KEPT_TOKENS = 16_384  # of images that were seen
IMAGE = 1  # as `mm_token_type_ids` say it


class CannotSee(Exception):
    """Images of this model cannot be served."""


@dataclass(frozen=True, slots=True)
class Places:
    """Positions of a prompt as a model with positions in three dimensions counts them."""

    prompt: Tensor  # [3, tokens]
    shift: int  # what the answer's are ahead of, or mostly behind, their place in the sequence


class Vision:
    def __init__(self, model: Any, reader: PictureReader) -> None:
        self.reader = reader
        self.model = model
        self._part = model.base_model
        self._seen: OrderedDict[bytes, Tensor] = OrderedDict()
        _refuse_what_looks_ahead(model)
        self._inputs = _parameters(self._part.get_image_features)
        self._counts = getattr(self._part, "get_rope_index", None)

    def example(self) -> Job:
        """A prompt with an image in it, to compare with what the model by itself says."""
        image = self.reader.read(_noise())
        text = [token for token in range(20) if token != self.reader.token]
        prompt = (*text, *self.reader.tokens(image), *text)
        positions = tuple(place for place, token in enumerate(prompt) if token == self.reader.token)
        return Job("example", prompt, images=(PlacedImage(image, positions),))

    def whole(self, job: Job) -> dict[str, Tensor]:
        """All that the model itself is called with for a job."""
        given = {"input_ids": torch.tensor([job.prompt], device=self.model.device), "mm_token_type_ids": _types(job)}
        given |= self._given([placed.image for placed in job.images])
        return {
            name: tensor.to(self.model.device)
            for name, tensor in given.items()
            if name in _parameters(self.model.forward)
        }

    def concerns(self, works: Sequence[Work]) -> bool:
        """Whether a step is not the same as with text only."""
        return any(
            work.sequence.job.images and (self._counts is not None or work.start < len(work.sequence.job.prompt))
            for work in works
        )

    def look(self, work: Work) -> None:
        """Sees what the step will need; fails here, and not in the step, if it fails."""
        sequence = work.sequence
        for placed in sequence.job.images:
            if _part(placed, work):
                self._see(placed.image)
        if sequence.job.images and self._counts and sequence.places is None:
            sequence.places = self._places(sequence.job)

    def inputs(self, works: Sequence[Work], ids: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """What the model is called with instead of `ids` and `positions` [1, tokens], the works' one after another."""
        embeddings = self.model.get_input_embeddings()(ids)
        positions = positions if self._counts is None else positions.expand(3, 1, -1).clone()
        begin = 0
        for work in works:
            self._fill(embeddings[0, begin : begin + work.num_tokens], work)
            if self._counts is not None:
                self._move(positions[:, 0, begin : begin + work.num_tokens], work)
            begin += work.num_tokens
        return {"inputs_embeds": embeddings, "position_ids": positions}

    def _fill(self, embeddings: Tensor, work: Work) -> None:
        for placed in work.sequence.job.images:
            if part := _part(placed, work):
                rows = [position - work.start for position in placed.positions[part]]
                embeddings[rows] = self._see(placed.image)[part]

    def _move(self, positions: Tensor, work: Work) -> None:
        """`positions` [3, tokens] become those of a sequence with images."""
        if work.sequence.job.images:
            places = work.sequence.places or self._places(work.sequence.job)
            known = max(0, places.prompt.shape[1] - work.start)
            positions[:, :known] = places.prompt[:, work.start : work.end]
            positions[:, known:] += places.shift

    @torch.inference_mode()
    def _see(self, image: Image) -> Tensor:
        """[tokens, width]"""
        if image.digest not in self._seen:
            self._seen[image.digest] = self._features(image)
        self._seen.move_to_end(image.digest)
        while len(self._seen) > 1 and sum(map(len, self._seen.values())) > KEPT_TOKENS:
            self._seen.popitem(last=False)
        return self._seen[image.digest]

    def _features(self, image: Image) -> Tensor:
        given = {name: tensor for name, tensor in self._given([image]).items() if name in self._inputs}
        out = self._part.get_image_features(**given, return_dict=True)
        if getattr(out, "deepstack_features", None) is not None:
            raise CannotSee("its images reach deeper layers, too")
        features = torch.cat([each.flatten(end_dim=-2) for each in out.pooler_output])
        if len(features) != image.num_tokens:
            raise CannotSee(f"{len(features)} features for {image.num_tokens} tokens")
        return features.to(self.model.dtype)

    def _places(self, job: Job) -> Places:
        assert self._counts
        wanted = _parameters(self._counts)
        given = {name: tensor for name, tensor in self.whole(job).items() if name in wanted}
        positions, shift = self._counts(**given)
        return Places(positions[:, 0], int(shift))

    def _given(self, images: Sequence[Image]) -> dict[str, Tensor]:
        names = images[0].inputs
        return {name: self._tensor(np.concatenate([image.inputs[name] for image in images])) for name in names}

    def _tensor(self, array: Any) -> Tensor:
        tensor = torch.from_numpy(array).to(self.model.device)
        return tensor.to(self.model.dtype) if tensor.is_floating_point() else tensor


def _part(placed: PlacedImage, work: Work) -> slice | None:
    """Which of an image's tokens a step computes."""
    first, last = (bisect_left(placed.positions, end) for end in (work.start, work.end))
    return slice(first, last) if first < last else None


def _types(job: Job) -> Tensor:
    types = torch.zeros(1, len(job.prompt), dtype=torch.int)
    types[0, [position for placed in job.images for position in placed.positions]] = IMAGE
    return types


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def _refuse_what_looks_ahead(model: Any) -> None:
    if not hasattr(model.base_model, "get_image_features"):
        raise CannotSee("it has no part that sees images by themselves")
    if "token_type_ids" in _parameters(model.forward):
        raise CannotSee("its images' tokens look at those behind them")


def _noise() -> Picture:
    rgb = np.random.default_rng(0).integers(0, 256, 64 * 48 * 3, dtype=np.uint8)
    return Picture(64, 48, rgb.tobytes())

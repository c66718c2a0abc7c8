"""The part of a model that sees: from images to what stands in their tokens' places, and where these are.

An image is looked at when the first of its tokens is computed, and not at all where the cache has them. What was seen
is kept for a while, so that a prompt that is read in several steps looks once.
"""

import inspect
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from services.engine.base import Image, Job, Picture, PlacedImage
from services.engine.execution.model_structure import language_model
from services.engine.scheduling.scheduler import ScheduledSequence
from services.engine.scheduling.sequence import CacheKey
from services.engine.vision.picture_reader import PictureReader
from services.engine.vision.pixels import encoded

KEPT_TOKENS = 16_384  # of images that were seen
IMAGE = 1  # as `mm_token_type_ids` say it
DEEPER = "parley_deeper"  # an argument that goes through the whole model, to be taken by its language part


class UnsupportedVision(Exception):
    """Images of this model cannot be served."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What an image is to the model, for each of its tokens."""

    embeddings: Tensor  # [tokens, width]
    deeper: tuple[Tensor, ...] = ()  # added behind each of the first layers, in models with a DeepStack


@dataclass(frozen=True, slots=True)
class ImageSlice:
    """A part of an image that a step computes, and its rows among the step's tokens."""

    seen: ImageFeatures
    part: slice
    rows: list[int]


@dataclass(frozen=True, slots=True)
class RopePositions:
    """Positions of a prompt as a model with positions in three dimensions counts them."""

    prompt: Tensor  # [3, tokens]
    shift: int  # what the answer's are ahead of, or mostly behind, their place in the sequence


class Vision:
    def __init__(self, model: Any, reader: PictureReader) -> None:
        self.reader = reader
        self.model = model
        self._part = model.base_model
        self._kept: OrderedDict[tuple[CacheKey | None, bytes], ImageFeatures] = OrderedDict()
        _refuse_what_looks_ahead(model)
        self._inputs = _parameters(self._part.get_image_features)
        self._counts = getattr(self._part, "get_rope_index", None)
        if "deepstack_visual_embeds" in _parameters(language_model(model).forward):
            language_model(model).register_forward_pre_hook(_take_deeper, with_kwargs=True)

    def example(self) -> Job:
        """A prompt with an image in it, to compare with what the model by itself says."""
        image = self.reader.read(_noise())
        text = [token for token in range(20) if token != self.reader.token]
        prompt = (*text, *self.reader.tokens(image), *text)
        positions = tuple(place for place, token in enumerate(prompt) if token == self.reader.token)
        return Job("example", prompt, images=(PlacedImage(image, positions),))

    def whole(self, job: Job) -> dict[str, Tensor]:
        """All that the model itself is called with for a job."""
        return self._arguments(job, _parameters(self.model.forward))

    def concerns(self, works: Sequence[ScheduledSequence]) -> bool:
        """Whether a step is not the same as with text only."""
        return any(
            work.sequence.job.images and (self._counts is not None or work.start < len(work.sequence.job.prompt))
            for work in works
        )

    def look(self, work: ScheduledSequence) -> None:
        """Sees what the step will need; fails here, and not in the step, if it fails."""
        sequence = work.sequence
        for placed in sequence.job.images:
            if _part(placed, work):
                self._see(placed.image, sequence.cache_key)
        if sequence.job.images and self._counts and sequence.places is None:
            sequence.places = self._places(sequence.job)

    def inputs(self, works: Sequence[ScheduledSequence], ids: Tensor, positions: Tensor) -> dict[str, Any]:
        """What the model is called with instead of `ids` and `positions` [1, tokens], the works' one after another."""
        embeddings = self.model.get_input_embeddings()(ids)
        shown = list(self._shown(works))
        for each in shown:
            embeddings[0, each.rows] = each.seen.embeddings[each.part]
        given = {"inputs_embeds": embeddings, "position_ids": self._moved(works, positions)}
        return given | (_deeper(shown, ids) if shown and shown[0].seen.deeper else {})

    def _shown(self, works: Sequence[ScheduledSequence]) -> Iterator[ImageSlice]:
        begin = 0
        for work in works:
            for placed in work.sequence.job.images:
                if part := _part(placed, work):
                    rows = [begin + position - work.start for position in placed.positions[part]]
                    yield ImageSlice(self._see(placed.image, work.sequence.cache_key), part, rows)
            begin += work.num_tokens

    def _moved(self, works: Sequence[ScheduledSequence], positions: Tensor) -> Tensor:
        """In three dimensions, where the model counts so: [3, 1, tokens]."""
        if self._counts is None:
            return positions
        moved = positions.expand(3, 1, -1).clone()
        begin = 0
        for work in works:
            if work.sequence.job.images:
                places = work.sequence.places or self._places(work.sequence.job)
                own = moved[:, 0, begin : begin + work.num_tokens]
                known = max(0, places.prompt.shape[1] - work.start)
                own[:, :known] = places.prompt[:, work.start : work.end]
                own[:, known:] += places.shift
            begin += work.num_tokens
        return moved

    @torch.inference_mode()
    def _see(self, image: Image, whose: CacheKey | None) -> ImageFeatures:
        """Once for each owner: that an image was seen before is felt in the time it takes."""
        key = whose, image.digest
        if key not in self._kept:
            self._kept[key] = self._features(image)
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(len(seen.embeddings) for seen in self._kept.values()) > KEPT_TOKENS:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _features(self, image: Image) -> ImageFeatures:
        given = {name: tensor for name, tensor in self._given([image]).items() if name in self._inputs}
        out = self._part.get_image_features(**given, return_dict=True)
        embeddings = self._joined(out.pooler_output)
        deeper = tuple(self._joined(layer) for layer in getattr(out, "deepstack_features", None) or ())
        for features in (embeddings, *deeper):
            if len(features) != image.num_tokens:
                raise UnsupportedVision(f"{len(features)} features for {image.num_tokens} tokens")
        return ImageFeatures(embeddings, deeper)

    def _joined(self, parts: Iterable[Tensor]) -> Tensor:
        """An image's tiles one after another."""
        return torch.cat([each.flatten(end_dim=-2) for each in parts]).to(self.model.dtype)

    def _places(self, job: Job) -> RopePositions:
        assert self._counts
        positions, shift = self._counts(**self._arguments(job, _parameters(self._counts)))
        return RopePositions(positions[:, 0], int(shift))

    def _arguments(self, job: Job, wanted: set[str]) -> dict[str, Tensor]:
        given = {"input_ids": torch.tensor([job.prompt]), "mm_token_type_ids": _types(job)}
        given |= self._given([placed.image for placed in job.images])
        return {name: tensor.to(self.model.device) for name, tensor in given.items() if name in wanted}

    def _given(self, images: Sequence[Image]) -> dict[str, Tensor]:
        names = images[0].inputs
        return {name: self._tensor(np.concatenate([image.inputs[name] for image in images])) for name in names}

    def _tensor(self, array: Any) -> Tensor:
        tensor = torch.from_numpy(array).to(self.model.device)
        return tensor.to(self.model.dtype) if tensor.is_floating_point() else tensor


def _part(placed: PlacedImage, work: ScheduledSequence) -> slice | None:
    """Which of an image's tokens a step computes."""
    first, last = (bisect_left(placed.positions, end) for end in (work.start, work.end))
    return slice(first, last) if first < last else None


def _deeper(shown: list[ImageSlice], ids: Tensor) -> dict[str, Any]:
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, [row for each in shown for row in each.rows]] = True
    layers = zip(*([layer[each.part] for layer in each.seen.deeper] for each in shown), strict=True)
    return {DEEPER: {"visual_pos_masks": mask, "deepstack_visual_embeds": [torch.cat(layer) for layer in layers]}}


def _take_deeper(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model hands to its language part what it has seen itself; this comes in between."""
    return args, kwargs | kwargs.pop(DEEPER, {})


def _types(job: Job) -> Tensor:
    types = torch.zeros(1, len(job.prompt), dtype=torch.int)
    types[0, [position for placed in job.images for position in placed.positions]] = IMAGE
    return types


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def _refuse_what_looks_ahead(model: Any) -> None:
    if not hasattr(model.base_model, "get_image_features"):
        raise UnsupportedVision("it has no part that sees images by themselves")
    if "token_type_ids" in _parameters(model.forward):
        raise UnsupportedVision("its images' tokens look at those behind them")


def _noise() -> Picture:
    rgb = np.random.default_rng(0).integers(0, 256, 64 * 48 * 3, dtype=np.uint8)
    return encoded(Pillow.frombytes("RGB", (64, 48), rgb.tobytes()))


def vision_for(vision: Vision | None, works: Sequence[ScheduledSequence]) -> Vision | None:
    """What sees, if it has to in this step."""
    return vision if vision is not None and vision.concerns(works) else None

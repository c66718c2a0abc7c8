"""Vision: embeds the images of a prompt and computes the positions of models that count them in three dimensions.

An image is encoded when the first of its tokens is computed, and not at all where the KV cache has them. Its features
are kept for a while, so that a prompt computed in several steps encodes it once.
"""

import inspect
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from services.engine.base import Image, Picture, PlacedImage
from services.engine.execution.model_structure import language_model
from services.engine.scheduling.step import CacheKey, ImagePrompt, StepRow
from services.engine.vision.picture_reader import PictureReader
from services.engine.vision.pixels import encoded

KEPT_TOKENS = 16_384  # of encoded images
IMAGE = 1  # in `mm_token_type_ids`
DEEPSTACK = "parley_deepstack"  # an argument passed through the whole model to its language model


class UnsupportedVision(Exception):
    """Images of this model cannot be served."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What the vision tower makes of an image, for each of its tokens."""

    embeddings: Tensor  # [tokens, width]
    deepstack: tuple[Tensor, ...] = ()  # added after each of the first layers, in models with a DeepStack


@dataclass(frozen=True, slots=True)
class ImageSlice:
    """The part of an image that a step computes, and its rows among the step's tokens."""

    features: ImageFeatures
    part: slice
    rows: list[int]


@dataclass(frozen=True, slots=True)
class RopePositions:
    """Positions of a prompt, for models whose rotary embedding has three dimensions."""

    prompt: Tensor  # [3, tokens]
    shift: int  # of the tokens after the prompt, relative to their index


class Vision:
    def __init__(self, model: Any, reader: PictureReader) -> None:
        self.reader = reader
        self.model = model
        self._part = model.base_model
        self.features: OrderedDict[tuple[CacheKey, bytes], ImageFeatures] = OrderedDict()
        self._positions: WeakKeyDictionary[ImagePrompt, RopePositions] = WeakKeyDictionary()
        _refuse_bidirectional(model)
        self._inputs = _parameters(self._part.get_image_features)
        self._rope_index = getattr(self._part, "get_rope_index", None)
        if "deepstack_visual_embeds" in _parameters(language_model(model).forward):
            language_model(model).register_forward_pre_hook(_pass_deepstack, with_kwargs=True)

    def example(self) -> ImagePrompt:
        """A prompt with an image, to compare a runner with the model alone."""
        image = self.reader.read(_noise())
        text = [token for token in range(20) if token != self.reader.token]
        prompt = (*text, *self.reader.tokens(image), *text)
        positions = tuple(place for place, token in enumerate(prompt) if token == self.reader.token)
        return ImagePrompt(prompt, (PlacedImage(image, positions),), CacheKey(None))

    def model_inputs(self, prompt: ImagePrompt) -> dict[str, Tensor]:
        """The arguments of the model's own `forward` for a whole prompt."""
        return self._arguments(prompt, _parameters(self.model.forward))

    def concerns(self, rows: Sequence[StepRow]) -> bool:
        """Whether a step differs from one with text only."""
        return any(
            row.images and (self._rope_index is not None or row.start < len(row.images.token_ids)) for row in rows
        )

    def encode(self, row: StepRow) -> None:
        """Encodes the images that the row needs, so that a failure is not the whole step's."""
        if row.images is None:
            return
        for placed in row.images.images:
            if _part(placed, row):
                self._encode(placed.image, row.images.cache_key)
        if self._rope_index:
            self._rope_positions(row.images)

    def inputs(self, rows: Sequence[StepRow], ids: Tensor, positions: Tensor) -> dict[str, Any]:
        """The model's arguments instead of `ids` and `positions` [1, tokens], which are the rows' one after another."""
        embeddings = self.model.get_input_embeddings()(ids)
        slices = list(self._slices(rows))
        for each in slices:
            embeddings[0, each.rows] = each.features.embeddings[each.part]
        given = {"inputs_embeds": embeddings, "position_ids": self._step_positions(rows, positions)}
        return given | (_deepstack(slices, ids) if slices and slices[0].features.deepstack else {})

    def _slices(self, rows: Sequence[StepRow]) -> Iterator[ImageSlice]:
        begin = 0
        for row in rows:
            for placed in row.images.images if row.images else ():
                if part := _part(placed, row):
                    assert row.images
                    indices = [begin + position - row.start for position in placed.positions[part]]
                    yield ImageSlice(self._encode(placed.image, row.images.cache_key), part, indices)
            begin += row.num_tokens

    def _step_positions(self, rows: Sequence[StepRow], positions: Tensor) -> Tensor:
        """[3, 1, tokens], where the model has three dimensions."""
        if self._rope_index is None:
            return positions
        moved = positions.expand(3, 1, -1).clone()
        begin = 0
        for row in rows:
            if row.images:
                rope = self._rope_positions(row.images)
                own = moved[:, 0, begin : begin + row.num_tokens]
                known = max(0, rope.prompt.shape[1] - row.start)
                own[:, :known] = rope.prompt[:, row.start : row.end]
                own[:, known:] += rope.shift
            begin += row.num_tokens
        return moved

    @torch.inference_mode()
    def _encode(self, image: Image, cache_key: CacheKey) -> ImageFeatures:
        """Kept for each cache key separately: otherwise the time would show that another owner has sent the image."""
        key = cache_key, image.digest
        if key not in self.features:
            self.features[key] = self.compute_features(image)
        self.features.move_to_end(key)
        while len(self.features) > 1 and sum(len(each.embeddings) for each in self.features.values()) > KEPT_TOKENS:
            self.features.popitem(last=False)
        return self.features[key]

    def compute_features(self, image: Image) -> ImageFeatures:
        given = {name: tensor for name, tensor in self._image_inputs([image]).items() if name in self._inputs}
        out = self._part.get_image_features(**given, return_dict=True)
        embeddings = self._joined(out.pooler_output)
        deepstack = tuple(self._joined(layer) for layer in getattr(out, "deepstack_features", None) or ())
        for features in (embeddings, *deepstack):
            if len(features) != image.num_tokens:
                raise UnsupportedVision(f"{len(features)} features for {image.num_tokens} tokens")
        return ImageFeatures(embeddings, deepstack)

    def _joined(self, tiles: Iterable[Tensor]) -> Tensor:
        return torch.cat([each.flatten(end_dim=-2) for each in tiles]).to(self.model.dtype)

    def _rope_positions(self, prompt: ImagePrompt) -> RopePositions:
        assert self._rope_index
        if (found := self._positions.get(prompt)) is None:
            positions, shift = self._rope_index(**self._arguments(prompt, _parameters(self._rope_index)))
            found = self._positions[prompt] = RopePositions(positions[:, 0], int(shift))
        return found

    def _arguments(self, prompt: ImagePrompt, wanted: set[str]) -> dict[str, Tensor]:
        given = {"input_ids": torch.tensor([prompt.token_ids]), "mm_token_type_ids": _types(prompt)}
        given |= self._image_inputs([placed.image for placed in prompt.images])
        return {name: tensor.to(self.model.device) for name, tensor in given.items() if name in wanted}

    def _image_inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        names = images[0].inputs
        return {name: self._tensor(np.concatenate([image.inputs[name] for image in images])) for name in names}

    def _tensor(self, array: Any) -> Tensor:
        tensor = torch.from_numpy(array).to(self.model.device)
        return tensor.to(self.model.dtype) if tensor.is_floating_point() else tensor


def _part(placed: PlacedImage, row: StepRow) -> slice | None:
    """The tokens of an image that a row computes."""
    first, last = (bisect_left(placed.positions, end) for end in (row.start, row.end))
    return slice(first, last) if first < last else None


def _deepstack(slices: list[ImageSlice], ids: Tensor) -> dict[str, Any]:
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, [row for each in slices for row in each.rows]] = True
    layers = zip(*([layer[each.part] for layer in each.features.deepstack] for each in slices), strict=True)
    return {DEEPSTACK: {"visual_pos_masks": mask, "deepstack_visual_embeds": [torch.cat(layer) for layer in layers]}}


def _pass_deepstack(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model passes only its own features to its language model: this hook passes ours."""
    return args, kwargs | kwargs.pop(DEEPSTACK, {})


def _types(prompt: ImagePrompt) -> Tensor:
    types = torch.zeros(1, len(prompt.token_ids), dtype=torch.int)
    types[0, [position for placed in prompt.images for position in placed.positions]] = IMAGE
    return types


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def _refuse_bidirectional(model: Any) -> None:
    if not hasattr(model.base_model, "get_image_features"):
        raise UnsupportedVision("it cannot encode images separately")
    if "token_type_ids" in _parameters(model.forward):
        raise UnsupportedVision("its image tokens attend to later ones")


def _noise() -> Picture:
    rgb = np.random.default_rng(0).integers(0, 256, 64 * 48 * 3, dtype=np.uint8)
    return encoded(Pillow.frombytes("RGB", (64, 48), rgb.tobytes()))


def vision_for(vision: Vision | None, rows: Sequence[StepRow]) -> Vision | None:
    """The vision part, if this step needs it."""
    return vision if vision is not None and vision.concerns(rows) else None

"""Keys and values that grow in place: transformers' own copy all of them for each new token."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

MIN_SPARE = 64  # tokens
SPARE = 8  # one more for so many


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers' caches are not typed
    """As DynamicLayer, with spare room behind the last token; a copy of it goes without."""

    keys: Tensor
    values: Tensor
    _rooms: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, layer: DynamicLayer) -> "GrowingLayer":
        growing = cls()
        own = {name: value for name, value in vars(layer).items() if name != "_rooms"}
        growing.__dict__.update(own)
        return growing

    def __copy__(self) -> "GrowingLayer":
        return self.of(self)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[no-any-return]
        keys, values = self._rooms or (self.keys, self.values)
        self._rooms = _room_for(key_states, self.keys, keys), _room_for(value_states, self.values, values)
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        for room, new in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., start:end, :] = new
        self.keys, self.values = (room[..., :end, :] for room in self._rooms)
        return self.keys, self.values


def make_room(cache: Any) -> Any:
    """The cache with layers that grow in place, where transformers' own would copy."""
    layers = getattr(cache, "layers", None)
    if isinstance(layers, list):
        cache.layers = [GrowingLayer.of(layer) if type(layer) is DynamicLayer else layer for layer in layers]
    return cache


def _room_for(new: Tensor, kept: Tensor, room: Tensor) -> Tensor:
    """`room`, if what is kept is its beginning and the new fits in; else a larger copy."""
    length = kept.shape[-2]
    end = length + new.shape[-2]
    if room.data_ptr() == kept.data_ptr() and room.shape[:-2] == kept.shape[:-2] and room.shape[-2] >= end:
        return room
    spare = max(MIN_SPARE, end // SPARE)
    larger = kept.new_empty((*kept.shape[:-2], end + spare, kept.shape[-1]))
    larger[..., :length, :] = kept
    return larger

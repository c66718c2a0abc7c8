"""The experts of a GGUF file: one tensor has the gates, the ups or the downs of all experts of a layer."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from gguf.constants import GGMLQuantizationType

from services.engine.quantization.block_experts import DOWN, GATE_UP, ExpertSources, can_replace_experts
from services.engine.quantization.gguf_blocks import FORMATS, GgufWeight
from services.engine.quantization.gguf_file import GgufFile
from services.engine.quantization.gguf_header import Tensor as Place

STACKED = re.compile(r"(.*\.ffn_(gate|up|down)_exps)\.weight")
PARTS = ("gate", "up", "down")

Places = dict[str, Place]  # by their PARTS


class GgufExperts:
    """Those that can stay in their blocks, by the paths of their modules. `names`: the model's, of the file's."""

    def __init__(self, file: GgufFile, model: Any, names: Mapping[str, str]) -> None:
        self._file = file
        found: dict[str, Places] = defaultdict(dict)
        for place in file.head.tensors:
            if match := STACKED.fullmatch(place.name):
                path = names.get(match[1], "").rpartition(".")[0]
                found[path][match[2]] = place
        modules = dict(model.named_modules())
        self._places = {path: each for path, each in found.items() if path and _can_keep(modules.get(path), each)}

    @property
    def names(self) -> set[str]:
        """Of the file's tensors."""
        return {place.name for places in self._places.values() for place in places.values()}

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The shapes of those that the model has of them, by their names."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path, places in self._places.items():
            experts, inner, size = places["up"].shape
            shapes[f"{path}.{GATE_UP}"] = (experts, 2 * inner, size)
            shapes[f"{path}.{DOWN}"] = (experts, size, inner)
        return shapes

    def sources(self) -> dict[str, ExpertSources]:
        return {
            path: ExpertSources(
                [self._weights(places["gate"]), self._weights(places["up"])], self._weights(places["down"])
            )
            for path, places in self._places.items()
        }

    def _weights(self, place: Place) -> list[GgufWeight]:
        return [GgufWeight(self._file, place, expert=index) for index in range(place.shape[0])]


def _can_keep(module: Any, places: Places) -> bool:
    if module is None or set(places) != set(PARTS) or not can_replace_experts(module):
        return False
    if not module.has_gate or not module.is_concatenated or module.is_transposed:
        return False
    return all(GGMLQuantizationType(place.kind) in FORMATS for place in places.values())

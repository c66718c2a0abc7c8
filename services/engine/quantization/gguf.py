"""GGUF: models from one file. On the CPU linear layers and embeddings keep its blocks (`blocks_model`); elsewhere, and
where a dtype is asked for, `transformers` expands them.

Names of tensors, and what is done to them on their way (rows of Llama's queries and keys are permuted, Gemma's norms
have 1 added), are those of `transformers`: weights that stay in blocks are handed to its loader as placeholders.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.integrations.gguf.utils import is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from services.engine.loading.unusable import UnusableModel
from services.engine.loading.weights import read_weights
from services.engine.parallel.group import RankGroup
from services.engine.parallel.sharding import localised_name, read_part
from services.engine.parallel.split import SETTING, Part, part_of
from services.engine.quantization import gguf_mixtures, gguf_rope
from services.engine.quantization.block_experts import replace_experts
from services.engine.quantization.block_layers import can_replace, replace_layers
from services.engine.quantization.gguf_blocks import FORMATS, GgufWeight
from services.engine.quantization.gguf_experts import GgufExperts
from services.engine.quantization.gguf_file import GgufFile
from services.engine.quantization.gguf_header import Tensor as Place
from services.engine.quantization.gguf_parts import kept_parts
from services.engine.quantization.quantized_blocks import BlockSource
from services.errors import EngineFailed

logger = logging.getLogger(__name__)

Kind = GGMLQuantizationType

PLAIN = (Kind.F32, Kind.F16, Kind.BF16)


@dataclass(frozen=True, slots=True)
class GgufCheckpoint:
    """`parts`: the folder of its configuration and tokenizer, if they are kept; None: they are read from the file."""

    folder: str
    file: str
    parts: Path | None

    @property
    def has_blocks(self) -> bool:
        return not is_gguf_arch_supported(GgufFile(self._path).head.architecture)  # those have names of another kind

    @property
    def _path(self) -> Path:
        return Path(self.folder, self.file)

    def tokenizer(self) -> Any:
        if self.parts is not None:
            return AutoTokenizer.from_pretrained(self.parts)
        return AutoTokenizer.from_pretrained(self.folder, gguf_file=self.file)

    def split_kind(self, enable_mm: bool | None) -> tuple[Any, Any]:
        if not self.has_blocks:
            architecture = GgufFile(self._path).head.architecture
            raise EngineFailed(f"{SETTING}: a GGUF file of the architecture {architecture} is read in one piece")
        return AutoModelForCausalLM, self._config()

    def model(self, dtype: torch.dtype, *, enable_mm: bool | None, group: RankGroup | None = None) -> Any:
        """Expanded."""
        return self._read(dtype, group, keep=False) if self.has_blocks else self._read_elsewhere(dtype)

    def check_blocks(self) -> None:
        _refuse_types(GgufFile(self._path))

    def blocks_model(self, dtype: torch.dtype, *, enable_mm: bool | None, group: RankGroup | None = None) -> Any:
        """Needs the kernel of `block_layers`. Raises UnusableModel for types of tensors that it is not for."""
        return self._read(dtype, group, keep=True)

    def _read(self, dtype: torch.dtype, group: RankGroup | None, *, keep: bool) -> Any:
        file = GgufFile(self._path)
        if keep:
            _refuse_types(file)
        gguf_rope.refuse_long(file)
        config = self._config()
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        with torch.device("meta"):
            empty = kind(config)
        tensors = _Tensors(file, empty, group, keep=keep)
        state = tensors.read(dtype)
        options = {"config": config, "state_dict": state, "dtype": dtype, "label": str(self._path)}
        model = read_part(partial(read_weights, kind, None, **options), group)
        replace_layers(model, {localised_name(model, name): kept for name, kept in tensors.kept.items()}, dtype)
        if tensors.experts:
            replace_experts(model, tensors.experts.sources())
        gguf_rope.apply_factors(model, file)
        return model

    def _read_elsewhere(self, dtype: torch.dtype) -> Any:
        """By `transformers`, from the metadata on."""
        file = GgufFile(self._path)
        gguf_rope.refuse_long(file)
        packing = GgufConfig(dequantize=True)
        model = read_weights(
            AutoModelForCausalLM, self.folder, dtype=dtype, gguf_file=self.file, quantization_config=packing
        )
        gguf_rope.apply_factors(model, file)
        return model

    def _config(self) -> Any:
        if self.parts is not None:
            config = AutoConfig.from_pretrained(self.parts)
        else:
            config = AutoConfig.from_pretrained(self.folder, gguf_file=self.file)
        return gguf_mixtures.complete_config(config, GgufFile(self._path).head)


def open_file(path: Path, kept: Path | None = None) -> GgufCheckpoint:
    """`kept`: a folder for what takes long to be read from the file, if there is one."""
    return GgufCheckpoint(str(path.parent), path.name, kept_parts(path, kept))


def _refuse_types(file: GgufFile) -> None:
    for place in file.head.tensors:
        kind = Kind(place.kind)
        if kind not in FORMATS and kind not in PLAIN:
            raise UnusableModel(
                f"{file.path} has tensors of the type {kind.name} ({place.name}), for which there is no kernel:"
                " quantization=none expands them to 16 bits"
            )


class _Tensors:
    """What a model is given of a file: numbers, and placeholders where layers are to keep blocks."""

    def __init__(self, file: GgufFile, empty: Any, group: RankGroup | None, *, keep: bool) -> None:
        self.kept: dict[str, BlockSource] = {}
        self._group = group
        self._plan: dict[str, str] = empty.tp_plan if group else {}
        self._file = file
        self._processor = gguf_mixtures.processor_of(file.head.architecture, empty.config)
        self._names: dict[str, str] = _parameter_names(empty, self._processor)
        self.experts = GgufExperts(file, empty, self._names) if keep and group is None else None
        layers = empty.named_modules() if keep else ()
        self._layers = {f"{name}.weight": module for name, module in layers if can_replace(module)}

    def read(self, dtype: torch.dtype) -> dict[str, Tensor]:
        parsed: dict[str, Any] = {"tensors": {}}
        state = {name: _placeholder(shape, dtype) for name, shape in self._expert_parameters.items()}
        left_out = []
        in_blocks = self.experts.names if self.experts else ()
        for place in self._file.head.tensors:
            if place.name in in_blocks:
                continue
            name = self._names.get(place.name)
            if name is not None and (weight := self._blocks(place, name)) is not None:
                self.kept[name] = weight
                state[name] = _placeholder(place.shape, dtype)
                continue
            values, given = self._processed(place, parsed)
            if given is not None and (found := self._names.get(given)) is not None:
                state[found] = torch.from_numpy(values).to(dtype)
            elif given is not None and place.name not in gguf_rope.READ_HERE:
                left_out.append(place.name)
        if left_out:
            logger.warning("%s has %s that the model does not read", self._file.path, ", ".join(sorted(left_out)))
        return state | {name: tensor.to(dtype) for name, tensor in parsed["tensors"].items()}

    @property
    def _expert_parameters(self) -> dict[str, tuple[int, ...]]:
        return self.experts.parameters if self.experts else {}

    def _processed(self, place: Place, parsed: dict[str, Any]) -> tuple[Any, str | None]:
        """None: the tensor is among the parsed ones."""
        done = self._processor.process(
            weights=self._file.values(place),
            name=place.name,
            tensor_key_mapping=self._names,
            parsed_parameters=parsed,
        )
        return np.ascontiguousarray(done.weights), done.name

    def _blocks(self, place: Place, name: str) -> GgufWeight | None:
        """None for what cannot stay as it is."""
        module = self._layers.get(name)
        if Kind(place.kind) not in FORMATS or module is None or tuple(module.weight.shape) != place.shape:
            return None
        order = self._row_order(place)
        if order is None:
            return None
        part = self._part(place, name)
        if part is None:
            return None
        same = part.rows is None and torch.equal(order, torch.arange(len(order)))
        rows = order if part.rows is None else order[part.rows.start : part.rows.stop]
        return GgufWeight(self._file, place, None if same else rows, part.columns)

    def _part(self, place: Place, name: str) -> Part | None:
        """This rank's; None: it is none of whole blocks."""
        if self._group is None:
            return Part()
        part = part_of(name, place.shape, self._plan, self._group.rank, self._group.size)
        in_block, _ = GGML_QUANT_SIZES[Kind(place.kind)]
        if part and part.columns and (part.columns.start % in_block or part.columns.stop % in_block):
            return None
        return part

    def _row_order(self, place: Place) -> Tensor | None:
        """What `transformers` does to a tensor, tried on the numbers of its rows; None: more than to permute them."""
        rows = np.arange(place.shape[0], dtype=np.int64)[:, None]
        try:
            done = self._processor.process(weights=rows, name=place.name, tensor_key_mapping={}, parsed_parameters={})
        except (ValueError, KeyError, TypeError, IndexError):  # it looks at columns, or at other tensors
            return None
        if done.name != place.name or done.weights.shape != rows.shape:
            return None
        order, same = np.ascontiguousarray(done.weights[:, 0]), rows[:, 0]
        is_permuted = np.array_equal(order, same) or np.array_equal(np.sort(order), same)
        return torch.from_numpy(order) if is_permuted else None


def _placeholder(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype).expand(shape)


@dataclass(frozen=True)
class _Named:
    """As much of a model as its names are found by: `transformers` would look at each of its modules in turn."""

    model: Any

    @property
    def config(self) -> Any:
        return self.model.config

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()  # type: ignore[no-any-return]

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        return iter(())


def _parameter_names(model: Any, processor: Any) -> dict[str, str]:
    """The model's names of a file's tensors: some files are made of a model without its head."""
    prefix = f"{model.base_model_prefix}."
    kind = gguf_mixtures.named_like(model.config)
    inner: dict[str, str] = get_gguf_hf_weights_map(_Named(model.base_model), processor, kind, qual_name=prefix)
    outer: dict[str, str] = get_gguf_hf_weights_map(_Named(model), processor, kind)
    return inner | outer

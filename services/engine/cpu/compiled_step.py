"""A step as one native function, made ahead of time and kept on disk.

Eager steps pay for some thousand small operators; compiled, a step of an unmodified model is one call, whatever mix of
prompts and answers is in it. Serving begins eagerly at once. A process of its own exports the step and compiles it
(AOTInductor), and the runner takes it over when it is ready; the next start finds it on disk and loads it in
milliseconds. The package holds no weights: it is given the model's own, so nothing is in memory twice. Without a C++
compiler steps stay eager.
"""

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from services.engine import quantization
from services.engine.cpu import attention, bf16_linear, kernels, merged_linear, packed_attention
from services.engine.cpu.attention import ATTENTION, attention_context
from services.engine.cpu.merged_linear import pack_linears, packed_weights
from services.engine.cpu.packed_attention import PackedAttention
from services.engine.execution.kv_cache import LayerShape, SlotCache
from services.engine.execution.model_structure import language_model
from services.engine.loading import long_rope
from services.engine.loading.loader import Source, load
from services.engine.loading.long_rope import install_long_rope
from services.engine.lora import low_rank, sites
from services.engine.quantization.block_layers import block_formats
from services.engine.scheduling.step import LONG_POSITIONS, StepRow

CONSTANT = "_tensor_constant"  # how AOTInductor numbers the tensors that are no parameters, in the order of their use
CONSTANTS = "parley_constants"  # the metadata with the paths of their modules in that order
MIN_ROWS = 2  # torch.export specialises on 1
MIN_SLOTS = 2  # so it does on a memory of one slot; a memory may have fewer slots than were compiled for, never more
MAX_ROWS = 2**16
TRIED_TOKENS = 512  # of a prompt


@dataclass(frozen=True, slots=True)
class StepPlan:
    """All that a compiled step depends on, but for the weights."""

    source: Source
    dtype: str
    num_slots: int
    length: int
    shapes: Mapping[int, LayerShape]
    coded: bool = False  # whether bf16 layers are those of our kernel
    adapted: bool = False  # whether its layers add what adapters make

    maker = __name__

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "StepPlan":
        given = json.loads(text)
        shapes = {int(index): _shape(**shape) for index, shape in given.pop("shapes").items()}
        return cls(source=Source(**given.pop("source")), **given, shapes=shapes)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_slots", max(MIN_SLOTS, self.num_slots))

    def file(self, folder: Path, model: Any) -> Path:
        method = None if self.source.quantization == quantization.AS_STORED else self.source.quantization
        same = {"source": method, "class": type(model).__name__}  # one architecture shares a step
        facts = asdict(self) | same | {"blocks": block_formats(model)}
        more = [low_rank.__file__, sites.__file__] if self.adapted else []
        return folder / f"{model.config.model_type}-{digest(model, facts, *more)}.pt2"


def digest(model: Any, facts: Mapping[str, object], *files: str) -> str:
    """Of all that compiled code depends on: the kernels, and the modules that are traced, with the `files` of more."""
    traced = [attention.__file__, packed_attention.__file__, bf16_linear.__file__, merged_linear.__file__]
    traced += [long_rope.__file__, __file__, *files]
    traced += [module.__file__ for module in quantization.kernel_modules()]
    everything = {
        **facts,
        "config": model.config.to_dict() | {"_name_or_path": None},
        "versions": (torch.__version__, transformers.__version__),
        "machine": (kernels.machine(), torch.get_num_threads()),
        "kernels": kernels.digests(),
        "code": [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in traced],
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _shape(dtype: str, **sizes: int) -> LayerShape:
    return LayerShape(**sizes, dtype=getattr(torch, dtype.removeprefix("torch.")))


class PackedStep(nn.Module):
    """What is exported: the tokens of any mix of prompts and answers in one row.

    `ids`, `positions`, `writes` (where keys and values go) and `slots` [tokens]; `asked` [logits]: whose are wanted.
    """

    def __init__(self, model: nn.Module, layers: list[int]) -> None:
        super().__init__()
        self.model = model
        self._layers = layers
        self._keeps = supports_logits_to_keep(model)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        writes: Tensor,
        slots: Tensor,
        asked: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        layers = dict(zip(self._layers, zip(keys, values, strict=True), strict=True))
        options = {"logits_to_keep": asked} if self._keeps else {}
        with attention_context(PackedAttention(positions % LONG_POSITIONS + 1, writes, slots, layers)):
            out = self.model(input_ids=ids[None], position_ids=positions[None], use_cache=False, **options)
        return out.logits[0] if self._keeps else out.logits[0, asked]  # type: ignore[no-any-return]


class CompiledStep:
    """A loaded package with a model's weights in it."""

    def __init__(self, package: Any, cache: SlotCache) -> None:
        self._package = package
        self._spare = cache.length
        self._keys, self._values = _tensors(cache)

    @classmethod
    def load(cls, file: Path, model: nn.Module, cache: SlotCache) -> "CompiledStep":
        return cls(open_package(file, model), cache)

    def over(self, cache: SlotCache) -> "CompiledStep":
        """The same with another memory."""
        return CompiledStep(self._package, cache)

    @torch.inference_mode()
    def run(self, rows: list[StepRow]) -> Tensor:
        """Logits `[rows, vocabulary]`, as a runner's."""
        ids = [token for row in rows for token in row.token_ids]
        positions = [position for row in rows for position in range(row.start, row.end)]
        position_ids = [position for row in rows for position in row.position_ids]
        slots = [row.slot for row in rows for _ in range(row.num_tokens)]
        asked = logits_indices(rows)
        surplus = max(0, MIN_ROWS - len(ids))
        logits: Tensor = self._package(
            torch.tensor(ids + [0] * surplus),
            torch.tensor(position_ids + [0] * surplus),
            torch.tensor(positions + [self._spare] * surplus),
            torch.tensor(slots + slots[:1] * surplus),
            torch.tensor(asked + [0] * (MIN_ROWS - len(asked))),
            *self._keys,
            *self._values,
        )
        return logits[: len(asked)]


def logits_indices(rows: list[StepRow]) -> list[int]:
    """Which of the packed tokens' logits are wanted."""
    asked: list[int] = []
    start = 0
    for row in rows:
        start += row.num_tokens
        asked += range(start - row.num_logits, start)
    return asked


def supports_logits_to_keep(model: nn.Module) -> bool:
    """Whether the model takes `logits_to_keep`: the indices of the tokens whose logits are wanted."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _tensors(cache: SlotCache) -> tuple[list[Tensor], list[Tensor]]:
    layers = cache.layers.values()
    return [layer.keys for layer in layers], [layer.values for layer in layers]


def open_package(file: Path, model: nn.Module, folder: Path | None = None) -> Callable[..., Tensor]:
    """Calls it without Python's lock: other threads go on meanwhile. `folder`: where the kernels are, if elsewhere."""
    kernels.load(kernels.library_path(folder or file.parent))
    package = torch.classes.parley.Package(str(file))
    names = package.names()
    package.give(names, _constants(model, names, json.loads(package.metadata(CONSTANTS))))

    def run(*inputs: Tensor) -> Tensor:
        out: Tensor = package.run(list(inputs))[0]
        return out

    return run


def _constants(model: nn.Module, names: list[str], used: list[str]) -> list[Tensor]:
    """The model's tensors, in the order of the names a package asks for them. `used`: the packed weights by number."""
    own = {f"model.{name}": tensor for name, tensor in _own_tensors(model)}
    packed = {f"model.{name}.weight": tensor for name, tensor in packed_weights(model).items()}
    numbered = {f"{CONSTANT}{index}": packed[name] for index, name in enumerate(used) if name in packed}
    return [(own | numbered)[name] for name in names]


def _own_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A tensor that layers share is asked for by either name."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def make(file: Path, text: str) -> None:
    """In a process of its own: reads the model again and compiles its step."""
    plan = StepPlan.from_json(text)
    model = load(plan.source, "cpu", plan.dtype, file.parent).model
    install_long_rope(model)
    kernels.ensure_loaded(file.parent)
    pack_linears(model, file.parent, coded=plan.coded)
    language_model(model).set_attn_implementation(ATTENTION)
    if plan.adapted:
        low_rank.hook_kernel(model)
    compile_to(file, model, plan)


def compile_to(file: Path, model: nn.Module, plan: StepPlan) -> None:
    kernels.ensure_loaded(file.parent)
    cache = SlotCache(plan.shapes, plan.num_slots, plan.length, torch.device("cpu"))
    step = PackedStep(model, list(plan.shapes)).eval()
    example = (*(torch.zeros(2 * MIN_ROWS, dtype=torch.int64) for _ in range(4)), torch.arange(MIN_ROWS))
    tokens = torch.export.Dim("tokens", min=MIN_ROWS, max=MAX_ROWS)
    logits = torch.export.Dim("logits", min=MIN_ROWS, max=MAX_ROWS)
    as_it_is: list[None] = [None] * len(plan.shapes)
    package(
        step,
        (*example, *_tensors(cache)),
        (*[{0: tokens}] * 4, {0: logits}, as_it_is, as_it_is),
        file,
        try_out=lambda made: try_step(CompiledStep(open_package(made, model, file.parent), cache), cache),
    )


def try_step(step: CompiledStep, cache: SlotCache) -> None:
    """The corners of what it may be asked for: the fewest and the most rows and tokens, and the memory's last place."""
    every, last = range(cache.num_slots), cache.num_slots - 1
    prompt = min(TRIED_TOKENS, cache.length)
    for rows in (
        [_row(0, 0, 1)],
        [_row(last, cache.length - 1, 1)],
        [_row(slot, slot % cache.length, 1) for slot in every],
        [_row(last, cache.length - prompt, prompt)],
        [*(_row(slot, 0, 1) for slot in every if slot != last), _row(last, 0, prompt)],
    ):
        if not step.run(rows).isfinite().all():
            raise ValueError("the compiled step does not compute numbers")


def _row(slot: int, start: int, num_tokens: int) -> StepRow:
    return StepRow("trial", slot, start, num_tokens, 1, (0,) * num_tokens)


def package(
    step: nn.Module,
    example: tuple[Any, ...],
    dynamic: tuple[Any, ...],
    file: Path,
    try_out: Callable[[Path], None],
) -> None:
    """Exports and compiles; a minute or so. The file appears whole and tried, or not at all."""
    with torch.no_grad(), _workshop(file) as folder:
        program = torch.export.export(step, example, dynamic_shapes=dynamic)
        used = list(program.graph_signature.inputs_to_lifted_tensor_constants.values())
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(folder / file.name),
            inductor_configs={
                "aot_inductor.package_constants_in_so": False,
                "aot_inductor.metadata": {CONSTANTS: json.dumps(used)},
            },
        )
        try_out(folder / file.name)
        os.replace(folder / file.name, file)


@contextmanager
def _workshop(file: Path) -> Iterator[Path]:
    """A folder for all that compiling leaves about; one that was left by a killed process is cleared away."""
    folder = file.with_suffix(".tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

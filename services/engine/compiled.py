"""The decode step as one native function, made ahead of time and kept on disk.

Eager steps pay for some thousand small operators; compiled, a step of an unmodified model is one call. Serving begins
eagerly at once. A process of its own, at the lowest priority, exports the step and compiles it (AOTInductor), and the
runner takes it over when it is ready; the next start finds it on disk and loads it in milliseconds. The package holds
no weights: it is given the model's own, so nothing is in memory twice. Without a C++ compiler steps stay eager.

The function sees a window of neighbouring slots, `rows` of them: those between the lowest and the highest that decode.
A row that does not take part writes to its slot's last position, which is kept free for that.
"""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from services.engine.attention import NAME, running, visible
from services.engine.kv_cache import LayerShape, SlotCache
from services.engine.packed import pack_linears, packed_weights
from services.engine.parts import language_part
from services.engine.scheduler import Work

logger = logging.getLogger(__name__)

CONSTANT = "_tensor_constant"  # how AOTInductor numbers the tensors that are no parameters, in the order of the modules
SPARSE = 2  # at most so many rows of a window for each that takes part
MIN_ROWS = 2  # torch.export specialises on 1


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a compiled step depends on, but for the weights."""

    source: str
    dtype: str
    num_slots: int
    length: int
    shapes: Mapping[int, LayerShape]

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        given = json.loads(text)
        shapes = {int(index): _shape(**shape) for index, shape in given.pop("shapes").items()}
        return cls(**given, shapes=shapes)

    def file(self, folder: Path, model: Any) -> Path:
        facts = asdict(self) | {
            "source": None,  # the same architecture shares a step
            "config": model.config.to_dict() | {"_name_or_path": None},
            "versions": (torch.__version__, transformers.__version__),
            "machine": (torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()),
            "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in _sources()],
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        return folder / f"{model.config.model_type}-{digest[:16]}.pt2"


def _shape(dtype: str, **sizes: int) -> LayerShape:
    return LayerShape(**sizes, dtype=getattr(torch, dtype.removeprefix("torch.")))


def _sources() -> list[Path]:
    return [Path(__file__).with_name(f"{name}.py") for name in ("attention", "compiled", "packed")]


class DecodeStep(nn.Module):
    """What is exported. `ids` and `positions` [rows], `writes` [rows], `span` [length so far] = 0, 1, 2, …"""

    def __init__(self, model: nn.Module, layers: list[int]) -> None:
        super().__init__()
        self.model = model
        self._layers = layers

    def forward(
        self, ids: Tensor, positions: Tensor, writes: Tensor, span: Tensor, keys: list[Tensor], values: list[Tensor]
    ) -> Tensor:
        rows = _Rows(positions, writes, span, dict(zip(self._layers, zip(keys, values, strict=True), strict=True)))
        with running(rows):
            out = self.model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        return out.logits[0]  # type: ignore[no-any-return]


@dataclass(slots=True)
class _Rows:
    """Attention of a DecodeStep: row i of the queries is row i of the window."""

    positions: Tensor
    writes: Tensor
    span: Tensor
    layers: dict[int, tuple[Tensor, Tensor]]

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None, window: int | None
    ) -> Tensor:
        cached_keys, cached_values = self.layers[layer]
        self._write(cached_keys, keys)
        self._write(cached_values, values)
        length = self.span.shape[0]
        grouped = queries.reshape(queries.shape[0], keys.shape[1], -1, queries.shape[2])
        out = scaled_dot_product_attention(
            grouped,
            cached_keys[:, :, :length],
            cached_values[:, :, :length],
            attn_mask=visible(self.positions[:, None], length, window)[:, None, None],
            scale=scale,
        )
        return out.reshape(queries.shape[0], queries.shape[1], -1)

    def _write(self, cache: Tensor, new: Tensor) -> None:
        rows = torch.arange(new.shape[0])[:, None]
        heads = torch.arange(new.shape[1])[None]
        cache.index_put_((rows, heads, self.writes[:, None]), new)


class CompiledDecode:
    """A loaded package with a model's weights in it."""

    def __init__(self, package: Any, cache: SlotCache) -> None:
        self._package = package
        self._cache = cache
        self._span = torch.arange(cache.length)
        self._windows: dict[tuple[int, int], tuple[list[Tensor], list[Tensor]]] = {}

    @classmethod
    def load(cls, file: Path, model: nn.Module, cache: SlotCache) -> "CompiledDecode":
        package = torch._inductor.aoti_load_package(str(file), run_single_threaded=True)
        names = package.get_constant_fqns()
        package.load_constants(_constants(model, names), check_full_update=True, user_managed=True)
        return cls(package, cache)

    def suits(self, works: list[Work]) -> bool:
        """Whether the slots lie close enough together for a window over them to be no waste."""
        _, rows = _window([work.slot for work in works], self._cache.num_slots)
        return rows <= SPARSE * len(works) + 1

    @torch.inference_mode()
    def run(self, works: list[Work]) -> Tensor:
        """One new token each -> logits [works, vocabulary]."""
        base, rows = _window([work.slot for work in works], self._cache.num_slots)
        ids, positions, writes = [0] * rows, [0] * rows, [self._cache.length] * rows
        for work in works:
            row = work.slot - base
            ids[row] = work.sequence.tokens[work.start]
            positions[row] = writes[row] = work.start
        length = max(MIN_ROWS, *(work.end for work in works))
        logits: Tensor = self._package(
            torch.tensor(ids),
            torch.tensor(positions),
            torch.tensor(writes),
            self._span[:length],
            *self._slots(base, rows),
        )
        order = [work.slot - base for work in works]
        return in_order(logits, order)

    def _slots(self, base: int, rows: int) -> tuple[list[Tensor], list[Tensor]]:
        if (base, rows) not in self._windows:
            self._windows[base, rows] = _views(self._cache, base, rows)
        return self._windows[base, rows]


def in_order(logits: Tensor, order: list[int]) -> Tensor:
    """Rows of `logits`; itself where that is all of them as they are, because a copy is megabytes in every step."""
    return logits if order == list(range(len(logits))) else logits[order]


def _window(slots: list[int], num_slots: int) -> tuple[int, int]:
    base = min(slots)
    rows = max(MIN_ROWS, max(slots) + 1 - base)
    return min(base, num_slots - rows), rows


def _views(cache: SlotCache, base: int, rows: int) -> tuple[list[Tensor], list[Tensor]]:
    layers = cache.layers.values()
    return [layer.keys[base : base + rows] for layer in layers], [layer.values[base : base + rows] for layer in layers]


def _constants(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """The model's tensors under the names a package asks for them."""
    own = {f"model.{name}": tensor for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    packed = {f"{CONSTANT}{index}": tensor for index, tensor in enumerate(packed_weights(model).values())}
    return {name: (own | packed)[name] for name in names}


def compile_to(file: Path, model: nn.Module, plan: Plan) -> None:
    """Exports and compiles; a minute or so. The file appears whole or not at all."""
    cache = SlotCache(plan.shapes, 2 * MIN_ROWS, plan.length, torch.device("cpu"))
    step = DecodeStep(model, list(plan.shapes)).eval()
    rows, length = 2 * MIN_ROWS, min(128, plan.length - 1)
    example = (*(torch.zeros(rows, dtype=torch.int64) for _ in range(3)), torch.arange(length), *_views(cache, 0, rows))
    any_rows = torch.export.Dim("rows", min=MIN_ROWS, max=plan.num_slots)
    any_length = torch.export.Dim("length", min=2, max=plan.length)
    each_layer = [{0: any_rows}] * len(plan.shapes)
    dynamic = ({0: any_rows}, {0: any_rows}, {0: any_rows}, {0: any_length}, each_layer, each_layer)
    with torch.no_grad(), _workshop(file) as folder:
        program = torch.export.export(step, example, dynamic_shapes=dynamic)
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(folder / file.name),
            inductor_configs={"aot_inductor.package_constants_in_so": False},
        )
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


class Compilation:
    """Gets a compiled step from the disk or from a process that makes one, and hands it to `ready`, from a thread."""

    def __init__(self, file: Path, plan: Plan, ready: Callable[[Path], None]) -> None:
        self.file = file
        self.plan = plan
        self._ready = ready
        self._worker: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="compilation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        if self._worker is not None:
            self._worker.terminate()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            if not self.file.exists():
                self._make()
            if not self._stopped and self.file.exists():
                self._ready(self.file)
        except Exception:
            logger.exception("steps stay eager: the compiled one cannot be used")

    def _make(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{self.file}.lock", timeout=0):
                self._run_worker()
        except Timeout:
            logger.info("another process is compiling this model; steps stay eager in this one")

    def _run_worker(self) -> None:
        command = [sys.executable, "-m", __name__, str(self.file), self.plan.to_json()]
        # in a session of its own: a terminal's Ctrl-C is for the server, which then ends the worker
        self._worker = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        _, said = self._worker.communicate()
        if self._worker.returncode != 0 and not self._stopped:
            reason = said.decode(errors="replace").strip().splitlines()[-1:] or ["the compiling process failed"]
            logger.warning("steps stay eager: %s", reason[0])


def main(file: str, plan: str) -> None:
    """The process of its own: reads the model again, compiles its step, leaves."""
    from services.engine.loader import load

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaving tidily
    os.nice(19)  # whoever is being served comes first
    given = Plan.from_json(plan)
    model = load(given.source, "cpu", given.dtype).model
    pack_linears(model)
    language_part(model).set_attn_implementation(NAME)
    compile_to(Path(file), model, given)


if __name__ == "__main__":
    main(*sys.argv[1:])

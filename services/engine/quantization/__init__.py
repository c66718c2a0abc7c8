"""Quantisation methods and quantised file formats by name; each is a module here, imported only when it is chosen.

A method is a module with `quantise`, the devices it is for, and its kernels (QuantizationMethod). A file format is a
module that reads models (Checkpoint), and one that reads the head of a file without torch (FileHeader). A weight format
is what a checkpoint in safetensors names in its configuration (WeightFormat). A new one is a file and a line below: its
kernels are compiled with the others, and change the key of compiled steps.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from services.errors import EngineFailed

METHODS = {"int8": "services.engine.quantization.int8", "int4": "services.engine.quantization.int4"}
LAYERS = (  # with kernels of their own, for methods and file formats
    "services.engine.quantization.block_layers",
    "services.engine.quantization.block_experts",
)
FILE_HEADERS = {".gguf": "services.engine.quantization.gguf_header"}
FILE_FORMATS = {".gguf": "services.engine.quantization.gguf"}
WEIGHT_FORMATS = {  # by the `quant_method` of a configuration
    "gptq": "services.engine.quantization.gptq",
    "awq": "services.engine.quantization.awq",
    "compressed-tensors": "services.engine.quantization.compressed_tensors",
    "fp8": "services.engine.quantization.fp8",
    "modelopt": "services.engine.quantization.modelopt",
}
AS_STORED = "as stored"  # weights stay in the blocks of their file, where there is a kernel for them
UNQUANTIZED = "none"
DEVICE_NAMES = {"cpu": "the CPU", "cuda": "CUDA"}


class QuantizationMethod(Protocol):
    __file__: str
    DEVICES: tuple[str, ...]  # torch's device types
    KERNELS: tuple[Path, ...]  # C++ sources with operators of the namespace `parley`

    def quantise(self, model: Any, kernels: Path | None) -> None:
        """Replaces the layers of a model, or raises EngineFailed. `kernels`: the folder of the compiled ones; None:
        none can be compiled."""
        ...

    def register_fakes(self) -> None:
        """Describes its operators to `torch.export`, once the kernels are loaded."""
        ...


class KernelModule(Protocol):
    __file__: str
    KERNELS: tuple[Path, ...]

    def register_fakes(self) -> None: ...


class FileHeader(Protocol):
    def check(self, path: Path) -> None:
        """Raises UnusableModel for a file that is damaged or incomplete."""
        ...

    def sampling(self, path: Path) -> dict[str, object]:
        """The sampling parameters that the model's authors recommend in it."""
        ...


class Checkpoint(Protocol):
    """The files of one model."""

    folder: str  # or a hub name
    has_blocks: bool  # `blocks_model` reads it

    def tokenizer(self) -> Any: ...

    def split_kind(self, enable_mm: bool | None) -> tuple[Any, Any]:
        """The auto class and the configuration of a model that several ranks are to read. Raises EngineFailed for
        what is read in one piece only."""
        ...

    def model(self, dtype: Any, *, enable_mm: bool | None, group: Any = None) -> Any:
        """With a group (`parallel.group.RankGroup`): this rank's part of it."""
        ...

    def check_blocks(self) -> None:
        """Raises UnusableModel for types of tensors that the kernel is not for."""
        ...

    def blocks_model(self, dtype: Any, *, enable_mm: bool | None, group: Any = None) -> Any:
        """With its weights in the blocks in which it has them; needs the kernel of `block_layers`."""
        ...


class WeightFormat(Protocol):
    def stored_weights(self, files: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        """Its StoredWeights by the paths of their layers, in SafetensorsFiles. Raises UnusableModel for a variant that
        is not read."""
        ...


def method(name: str, device: str) -> QuantizationMethod:
    """Raises EngineFailed for a device that it is not for."""
    found = _method(name)
    if device not in found.DEVICES:
        devices = " and ".join(DEVICE_NAMES.get(each, each) for each in found.DEVICES)
        raise EngineFailed(f"'quantization': {name} is for {devices}, this model is on {device}")
    return found


def kernel_modules() -> list[KernelModule]:
    layers = [cast(KernelModule, import_module(name)) for name in LAYERS]
    return [*layers, *(_method(name) for name in METHODS)]


def file_header(path: Path) -> FileHeader | None:
    """None for a file of no known format."""
    name = FILE_HEADERS.get(path.suffix)
    return cast(FileHeader, import_module(name)) if name and path.is_file() else None


def file_format(path: Path, kept: Path | None = None) -> Checkpoint | None:
    """None for a hub name, a file of no known format, or a folder without one. `kept`: a folder for what takes long to
    be read from files, if there is one."""
    file = weights_file(path) if path.is_dir() else path
    name = FILE_FORMATS.get(file.suffix) if file is not None else None
    return cast(Checkpoint, import_module(name).open_file(file, kept)) if name and file and file.is_file() else None


def weights_file(folder: Path) -> Path | None:
    """The one file of a known format in a folder that has no other weights."""
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        return None
    found = [file for suffix in FILE_FORMATS for file in folder.glob(f"*{suffix}")]
    return found[0] if len(found) == 1 else None


def weight_format(config: Mapping[str, Any]) -> WeightFormat | None:
    """Of a `quantization_config`; None: it is not read here."""
    name = WEIGHT_FORMATS.get(str(config.get("quant_method")))
    return cast(WeightFormat, import_module(name)) if name else None


def requested(quantization: str | None, dtype: str) -> str | None:
    """What a model is read as: a file's own blocks, unless a method, none, or numbers are asked for."""
    if quantization == UNQUANTIZED:
        return None
    return AS_STORED if quantization is None and dtype == "auto" else quantization


def _method(name: str) -> QuantizationMethod:
    return cast(QuantizationMethod, import_module(METHODS[name]))

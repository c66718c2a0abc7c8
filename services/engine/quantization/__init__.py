"""Quantisation methods and quantised file formats by name; each is a module here, imported only when it is chosen.

A method is a module with `quantise`, the devices it is for, and its kernels (QuantizationMethod). A file format is a
module that reads models (Checkpoint), and one that reads the head of a file without torch (FileHeader). A new one is a
file and a line below: its kernels are compiled with the others, and change the key of compiled steps.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from services.errors import EngineFailed

METHODS = {"int8": "services.engine.quantization.int8"}
FILE_HEADERS = {".gguf": "services.engine.quantization.gguf_header"}
FILE_FORMATS = {".gguf": "services.engine.quantization.gguf"}
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

    def tokenizer(self) -> Any: ...

    def model(self, dtype: Any, *, enable_mm: bool | None) -> Any: ...


def method(name: str, device: str) -> QuantizationMethod:
    """Raises EngineFailed for a device that it is not for."""
    found = _method(name)
    if device not in found.DEVICES:
        devices = " and ".join(DEVICE_NAMES.get(each, each) for each in found.DEVICES)
        raise EngineFailed(f"'quantization': {name} is for {devices}, this model is on {device}")
    return found


def methods() -> list[QuantizationMethod]:
    return [_method(name) for name in METHODS]


def file_header(path: Path) -> FileHeader | None:
    """None for a file of no known format."""
    name = FILE_HEADERS.get(path.suffix)
    return cast(FileHeader, import_module(name)) if name and path.is_file() else None


def file_format(path: Path) -> Checkpoint | None:
    """None for a folder, a hub name, or a file of no known format."""
    name = FILE_FORMATS.get(path.suffix)
    return cast(Checkpoint, import_module(name).open_file(path)) if name and path.is_file() else None


def _method(name: str) -> QuantizationMethod:
    return cast(QuantizationMethod, import_module(METHODS[name]))

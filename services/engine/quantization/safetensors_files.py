"""The tensors of a checkpoint in safetensors by their names, mapped into memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor

from services.engine.loading.unusable import UnusableModel

FILES = ["*.safetensors", "*.json"]
SINGLE = "model.safetensors"


class SafetensorsFiles:
    def __init__(self, source: str) -> None:
        """A folder or a hub name."""
        self.folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(source, allow_patterns=FILES))
        alone = self.folder / SINGLE
        paths = [alone] if alone.exists() else sorted(self.folder.glob("model*.safetensors"))
        if not paths:
            raise UnusableModel(f"{source} is quantised, and has no {SINGLE}: from other files it is not read")
        self._files: dict[str, Any] = {}
        for path in paths:
            file: Any = safe_open(path, "pt")
            self._files |= dict.fromkeys(file.keys(), file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def get(self, name: str) -> Tensor | None:
        return self[name] if name in self else None  # noqa: SIM401  that is this very method

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """As safetensors names it: `F16`, `I8`, `F8_E4M3` …"""
        return str(self._files[name].get_slice(name).get_dtype())

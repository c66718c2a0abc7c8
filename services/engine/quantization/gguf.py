"""GGUF: models from one file. `transformers` reads them; the weights are dequantised, because its packed layers would
unpack them again in each product."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


@dataclass(frozen=True, slots=True)
class GgufCheckpoint:
    folder: str
    file: str

    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder, gguf_file=self.file)

    def model(self, dtype: Any, *, enable_mm: bool | None) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=dtype, gguf_file=self.file, quantization_config=GgufConfig(dequantize=True)
        )


def open_file(path: Path) -> GgufCheckpoint:
    return GgufCheckpoint(str(path.parent), path.name)

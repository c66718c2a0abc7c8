"""GGUF: models from one file. `transformers` reads them; the weights are dequantised, because its packed layers would
unpack them again in each product."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from services.engine.loading.weights import read_weights


@dataclass(frozen=True, slots=True)
class GgufCheckpoint:
    folder: str
    file: str

    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder, gguf_file=self.file)

    def model(self, dtype: Any, *, enable_mm: bool | None) -> Any:
        packing = GgufConfig(dequantize=True)
        return read_weights(
            AutoModelForCausalLM, self.folder, dtype=dtype, gguf_file=self.file, quantization_config=packing
        )


def open_file(path: Path) -> GgufCheckpoint:
    return GgufCheckpoint(str(path.parent), path.name)

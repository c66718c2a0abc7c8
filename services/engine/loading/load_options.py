"""How a model is loaded and how large its cache is, as the engine is given it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LoadOptions:
    device: str
    dtype: str
    compile_dir: str | None
    max_model_len: int | None
    max_num_seqs: int
    cache_tokens: int | None
    kv_cache_dtype: str
    gpu_memory_utilization: float
    cpu_memory_share: float
    warm_up_tokens: int | None  # of a step; None: no warm-up

    @property
    def folder(self) -> Path | None:
        """Of compiled steps and kernels."""
        return Path(self.compile_dir) if self.compile_dir else None

"""The adapters of one model, applied in the steps whose rows name them.

The model's layers stay as they are: a hook behind each adds what the adapter of each token makes of its inputs. So one
batch has rows of several adapters and of none, on every runner. Adapters come and go while steps run: a step uses the
weights that were there when its layer was called, and an adapter is removed only after its last row.
"""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from services.engine.cpu.attention import AttentionProbe, attention_context
from services.engine.execution.model_structure import trial_tokens
from services.engine.loading.unusable import UnusableModel
from services.engine.lora.adapter import Adapter, read_adapter
from services.engine.lora.low_rank import LowRankBank
from services.engine.lora.sites import Site, find_sites
from services.engine.lora.step_adapters import StepAdapters, adapter_context, current_adapters

TRIAL = 7  # tokens


class Adapters:
    """All methods may be called from any thread, beside running steps."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._sites: Mapping[str, Site] = {}  # found once they are needed: packing comes before
        self.bank = LowRankBank.empty(model.device, model.dtype)
        self._changes = threading.Lock()

    def add(self, id: int, folder: str) -> None:
        """Reads an adapter and tries it. Raises UnusableModel for one that this model cannot have; blocking."""
        adapter = read_adapter(Path(folder), self._model.dtype)
        with self._changes:
            self._sites = self._sites or self._hooked()
            self._check(adapter, folder)
            self.bank = self.bank.with_adapter(id, adapter, self._sites)
        try:
            self._try(id, adapter, folder)
        except BaseException:
            self.remove(id)
            raise

    def remove(self, id: int) -> None:
        """Once no row names it any more."""
        with self._changes:
            self.bank = self.bank.without_adapter(id)

    def hand_over(self, step: StepAdapters) -> None:
        """To the kernel, which a compiled step calls on this thread."""
        self.bank.hand_over(step)

    @property
    def ids(self) -> list[int]:
        return list(self.bank.rows)

    def _hooked(self) -> Mapping[str, Site]:
        sites = find_sites(self._model)
        for site in sites.values():
            site.module.register_forward_hook(self._hook(site))
        return sites

    def _hook(self, site: Site) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def add(module: nn.Module, arguments: Any, out: Tensor) -> Tensor | None:
            step = current_adapters()
            return None if step is None else self.bank.added(out, arguments[0], site, step)

        return add

    def _check(self, adapter: Adapter, folder: str) -> None:
        name = type(self._model).__name__
        for layer, low_rank in adapter.layers.items():
            site = self._sites.get(layer)
            if site is None:
                raise UnusableModel(f"{folder} changes {layer}, which is no linear layer of {name}")
            sizes = low_rank.down.shape[1], low_rank.up.shape[1]
            if sizes != (site.inputs, site.outputs):
                raise UnusableModel(
                    f"{folder}: the weights of {layer} are for {sizes[0]} inputs and {sizes[1]} outputs, "
                    f"that of {name} has {site.inputs} and {site.outputs}"
                )
        lacking = [layer for layer in self._sites if layer not in adapter.layers and adapter.config.must_have(layer)]
        if lacking:
            raise UnusableModel(f"{folder} has no weights of {lacking[0]}, which 'target_modules' names")

    @torch.inference_mode()
    def _try(self, id: int, adapter: Adapter, folder: str) -> None:
        """Some models reach for a layer's weight themselves, or give a layer some of the tokens only."""
        trial = StepAdapters((id,) * TRIAL, (id,) * TRIAL)
        ids = torch.tensor([trial_tokens(self._model, TRIAL)], device=self._model.device)
        try:
            with attention_context(AttentionProbe()), adapter_context(trial):
                logits = self._model(input_ids=ids, use_cache=False).logits
        except Exception as error:  # whatever an unknown architecture may throw
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise UnusableModel(f"{folder} cannot be applied to {type(self._model).__name__}: {reason}") from error
        indices = {self._sites[layer].index: layer for layer in adapter.layers}
        if left_out := sorted(indices[index] for index in indices.keys() - trial.reached):
            raise UnusableModel(f"{folder} changes {left_out[0]}, which {type(self._model).__name__} does not call")
        if not logits.isfinite().all():
            raise UnusableModel(f"{folder} makes of {type(self._model).__name__} one that computes no numbers")

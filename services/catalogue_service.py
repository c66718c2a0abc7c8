"""The model list: context length, modalities and capabilities. It loads nothing; of an unloaded chat model only the
name is known."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from schemas.codex_schema import CodexModel, ReasoningLevel, TruncationPolicy
from schemas.sampling_schema import EffectiveSampling
from schemas.status_schema import LoadingProgress, Model, ModelMemory, Models, ModelStatus
from services.chat.formats import chat_format
from services.chat.formats.base import ChatFormat
from services.model_service import ModelManager
from services.models.config import Kind, ModelCard, ModelConfig
from services.models.footprint import Footprint
from services.models.memory import Memory

Capability = Literal["completion", "tools", "thinking", "vision", "embedding", "rerank"]  # Ollama's names

CAPABILITIES_OF_KIND: dict[Kind, tuple[Capability, ...]] = {
    "chat": ("completion", "tools"),
    "embedding": ("embedding",),
    "reranker": ("rerank",),
}
LEVELS = [
    ReasoningLevel(effort="low", description="Thinks shortly"),
    ReasoningLevel(effort="medium", description="Thinks as long as it usually does"),
    ReasoningLevel(effort="high", description="Thinks longer"),
]
LOOK_S = 10.0  # between two looks at the memory that is free
MAX_TOOL_OUTPUT = 10_000  # tokens of a tool's output that a client keeps, or an eighth of the context
INSTRUCTIONS = """\
You are a coding agent. You work in the user's folder through the tools you are given, until the task is done.

- Look before you change: read the files concerned, and search with `rg` or `grep` instead of guessing names.
- Change files with apply_patch where it is offered, else with the shell. Keep to the style that is there. Change only
  what the task needs, and never undo changes that are not yours.
- Run the tests or the program after a change, and read what they print. Mend causes, not symptoms.
- Ask only when the task cannot be understood. Do nothing destructive that was not asked for.
- End with one short message: what was changed, how it was checked, and what is left.
"""


@dataclass(frozen=True, slots=True)
class Abilities:
    context_length: int | None  # tokens of prompt and answer together; None: not loaded
    capabilities: tuple[Capability, ...]

    @property
    def input_modalities(self) -> list[str]:
        return ["text", *(["image"] if "vision" in self.capabilities else [])]


def status_of(card: ModelCard) -> ModelStatus:
    found = card.progress
    if found is None:
        return ModelStatus(value=card.state)
    done, total = (found.done, found.total) if found.total else (None, None)
    return ModelStatus(value=card.state, progress=LoadingProgress(stage=found.stage, done=done, total=total))


class CatalogueService:
    """`measure` reads what a model's files take; `memory` looks what is free."""

    def __init__(
        self,
        models: ModelManager,
        *,
        measure: Callable[[ModelConfig], Footprint | None] = lambda config: None,
        memory: Callable[[], Memory] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models = models
        self._measure = measure
        self._memory = memory
        self._clock = clock
        self._footprints: dict[str, Footprint] = {}  # by source
        self._free: Memory | None = None
        self._free_at = 0.0

    async def models(self) -> Models:
        cards = self._models.cards()
        chat = [card for card in cards if card.kind == "chat"]
        return Models(
            data=[await self.model(card.id) for card in cards],
            models=[self._codex(card, place) for place, card in enumerate(chat)],
        )

    async def model(self, name: str) -> Model:
        """Raises ModelNotFound. The answer has the requested name, which may be an alias."""
        card = self._models.card(name)
        known = self.abilities(card)
        is_chat = card.kind == "chat"
        return Model(
            id=name,
            created=card.created,
            status=status_of(card),
            parent=card.parent,
            sampling=EffectiveSampling(**(await self._models.sampling(name)).given) if is_chat else None,
            max_model_len=known.context_length,
            context_length=known.context_length,
            input_modalities=known.input_modalities if card.loaded else None,
            output_modalities=["text"] if is_chat and card.loaded else None,
            memory=await self._memory_of(card, known.context_length),
            capabilities=list(known.capabilities) if card.loaded else None,
        )

    async def _memory_of(self, card: ModelCard, loaded_length: int | None) -> ModelMemory | None:
        found = None if card.parent else await self._footprint(self._models.config(card.id))
        if self._memory is None or found is None:
            return None
        memory = await self._free_memory(self._memory)
        context = loaded_length if card.loaded else found.context(memory.free, memory.share)
        return ModelMemory(
            weights=found.weights,
            quantization=found.quantization,
            fits_in=None if context == 0 else memory.where,
            context_length=context,
        )

    async def _footprint(self, config: ModelConfig) -> Footprint | None:
        if config.source not in self._footprints:
            found = await asyncio.to_thread(self._measure, config)
            if found is None:
                return None
            self._footprints[config.source] = found
        return self._footprints[config.source]

    async def _free_memory(self, look: Callable[[], Memory]) -> Memory:
        if self._free is None or self._clock() - self._free_at > LOOK_S:
            self._free, self._free_at = await asyncio.to_thread(look), self._clock()
        return self._free

    async def load(self, name: str) -> Model:
        """Until it is loaded."""
        await self._models.load(name)
        return await self.model(name)

    async def unload(self, name: str) -> Model:
        await self._models.unload(name)
        return await self.model(name)

    def abilities(self, card: ModelCard) -> Abilities:
        engine = self._models.engine(card.id)
        found = [*CAPABILITIES_OF_KIND[card.kind]]
        if engine is not None and card.kind == "chat":
            found += ["thinking"] if self._chat_format(card).thinking is not None else []
            found += ["vision"] if engine.images is not None else []
        return Abilities(self._models.context_length(card.id), tuple(found))

    def _chat_format(self, card: ModelCard) -> ChatFormat:
        engine = self._models.engine(card.id)
        return chat_format(engine.tokenizer if engine else None, card.dialect)

    def _codex(self, card: ModelCard, place: int) -> CodexModel:
        known = self.abilities(card)
        thinks = "thinking" in known.capabilities
        return CodexModel(
            slug=card.id,
            display_name=card.id,
            default_reasoning_level="medium" if thinks else None,
            supported_reasoning_levels=LEVELS if thinks else [],
            priority=place,
            base_instructions=INSTRUCTIONS,
            supports_reasoning_summaries=thinks,
            supports_reasoning_summary_parameter=thinks,
            default_reasoning_summary="auto" if thinks else "none",
            truncation_policy=TruncationPolicy(
                limit=min(MAX_TOOL_OUTPUT, (known.context_length or MAX_TOOL_OUTPUT * 8) // 8)
            ),
            context_window=known.context_length,
            max_context_window=known.context_length,
            input_modalities=known.input_modalities,
        )

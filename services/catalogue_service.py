"""The model list: context length, modalities and capabilities. It loads nothing; of an unloaded chat model only the
name is known."""

from dataclasses import dataclass
from typing import Literal

from schemas.codex_schema import CodexModel, ReasoningLevel, TruncationPolicy
from schemas.sampling_schema import EffectiveSampling
from schemas.status_schema import Model, Models
from services.chat.formats import chat_format_of
from services.chat.formats.base import ChatFormat
from services.model_service import ModelManager
from services.models.config import Kind, ModelCard

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


class CatalogueService:
    def __init__(self, models: ModelManager) -> None:
        self._models = models

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
            sampling=EffectiveSampling(**(await self._models.sampling(name)).given) if is_chat else None,
            max_model_len=known.context_length,
            context_length=known.context_length,
            input_modalities=known.input_modalities if card.loaded else None,
            output_modalities=["text"] if is_chat and card.loaded else None,
            capabilities=list(known.capabilities) if card.loaded else None,
        )

    def abilities(self, card: ModelCard) -> Abilities:
        engine = self._models.engine(card.id)
        found = [*CAPABILITIES_OF_KIND[card.kind]]
        if engine is not None and card.kind == "chat":
            found += ["thinking"] if self._chat_format(card).thinking is not None else []
            found += ["vision"] if engine.images is not None else []
        return Abilities(self._models.context_length(card.id), tuple(found))

    def _chat_format(self, card: ModelCard) -> ChatFormat:
        engine = self._models.engine(card.id)
        return chat_format_of(engine.tokenizer.chat_template if engine else None, card.dialect)

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

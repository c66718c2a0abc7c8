"""What the models of this process are doing: their states, queues and speed."""

from schemas.status_schema import ModelActivity, ServiceStatus
from services.catalogue_service import status_of
from services.engine.base import EngineStats
from services.metrics_service import Metrics
from services.model_service import ModelManager
from services.models.config import ModelCard

IDLE = EngineStats()


class StatusService:
    def __init__(self, models: ModelManager, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics

    def status(self) -> ServiceStatus:
        stats = self._models.stats()
        cards = [card for card in self._models.cards() if card.parent is None]
        return ServiceStatus(data=[self._activity(card, stats.get(card.id, IDLE)) for card in cards])

    def _activity(self, card: ModelCard, stats: EngineStats) -> ModelActivity:
        engine = self._models.engine(card.id)
        return ModelActivity(
            id=card.id,
            kind=card.kind,
            status=status_of(card),
            device=getattr(engine, "device", None),
            dtype=getattr(engine, "dtype", None),
            max_model_len=self._models.context_length(card.id),
            running=stats.running,
            waiting=stats.waiting,
            cache_used=stats.cache_used,
            cache_size=stats.cache_size,
            tokens_per_second=self._metrics.tokens_per_second(card.id),
            is_stalled=stats.stalled,
        )

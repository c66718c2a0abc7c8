"""LoRA adapters that come and go while the server runs, in the shapes of vLLM's routes."""

import asyncio

from schemas.adapter_schema import LoadAdapter, UnloadAdapter
from services.engine.loading.unusable import UnusableModel
from services.errors import InvalidRequest, NotFound, literal
from services.model_service import ModelManager

MAX_NAME_CHARS = 200


class AdapterService:
    def __init__(self, models: ModelManager, *, workers: int = 1) -> None:
        """`workers`: processes that serve together, each with models of its own."""
        self._models = models
        self._workers = workers
        self._changes = asyncio.Lock()

    async def load(self, request: LoadAdapter) -> str:
        """Loads the model first, if it is not loaded. Raises InvalidRequest for a folder that cannot be applied."""
        self._check_workers()
        async with self._changes:
            try:
                await self._models.load_adapter(
                    request.lora_name, request.lora_path, request.model, in_place=request.load_inplace
                )
            except UnusableModel as error:
                raise InvalidRequest(f"'%s': {literal(str(error))}", "lora_path") from error
        return f"Success: LoRA adapter '{request.lora_name}' added successfully."

    async def unload(self, request: UnloadAdapter) -> str:
        """Answers that are being made with it are made to their end."""
        self._check_workers()
        async with self._changes:
            if not self._models.unload_adapter(request.lora_name):
                name = literal(request.lora_name[:MAX_NAME_CHARS])
                raise NotFound(f"'%s': no LoRA adapter is called '{name}'", "lora_name")
        return f"Success: LoRA adapter '{request.lora_name}' removed successfully."

    def _check_workers(self) -> None:
        if self._workers > 1:
            raise InvalidRequest(
                f"This server is {self._workers} processes (PARLEY_SERVER__WORKERS), and the request reaches one of "
                "them: name adapters in PARLEY_MODEL__ADAPTERS"
            )

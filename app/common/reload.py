"""Applies what was changed in `.env` or `parley.toml`: keys of the settings, models and aliases.

All else needs a restart. The environment of a process stays as it was at its start, and wins over both files.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator

from pydantic import BaseModel

from app.common import model_configs
from app.common.auth import Keys
from app.common.setting_names import JOINT, PREFIX
from app.common.settings import Settings
from schemas.reload_schema import Reload, ReloadedKeys, ReloadedModels
from services.errors import InvalidRequest
from services.key_service import KeyService
from services.model_service import ModelManager

logger = logging.getLogger(__name__)

APPLIED = {"model", "models", "embedding", "engine", "api_keys", "admin_key"}

ReadSettings = Callable[[], Settings]


class Reloader:
    """`read` raises ValueError or OSError for settings that cannot be served. None: the app was not made from files."""

    def __init__(
        self, settings: Settings, read: ReadSettings | None, keys: Keys, stored_keys: KeyService, models: ModelManager
    ) -> None:
        self._settings = settings
        self._read = read
        self._keys = keys
        self._stored_keys = stored_keys
        self._models = models
        self._reloads = asyncio.Lock()

    async def reload(self) -> Reload:
        """Changes all or nothing."""
        async with self._reloads:
            settings = await self._settings_now()
            configs = await asyncio.to_thread(model_configs.configs, settings)
            try:
                self._models.check_names(configs)
            except ValueError as error:
                raise _wrong(error) from error
            await self._stored_keys.reloaded()
            changes = self._models.reconfigure(configs, settings.model.aliases, model_configs.preloaded(settings))
            added, removed = self._keys.configure(settings.api_keys, settings.admin_key)
        found = Reload(
            models=ReloadedModels(added=changes.added, changed=changes.changed, removed=changes.removed),
            keys=ReloadedKeys(added=added, removed=removed),
            needs_restart=list(_different(self._settings, settings)),
        )
        logger.info("settings were reloaded: %s", found.model_dump_json(exclude={"object"}))
        return found

    async def _settings_now(self) -> Settings:
        server = self._settings.server
        if self._read is None or server.workers * server.replicas > 1:
            raise InvalidRequest(
                "This server is one of several processes, and the request reaches one of them: restart them, one after "
                "another"
            )
        try:
            settings = await asyncio.to_thread(self._read)
        except (ValueError, OSError) as error:
            raise _wrong(error) from error
        if not (settings.api_keys or settings.admin_key or self._stored_keys.has_keys):
            raise InvalidRequest(
                "The settings have no keys any more: a server that is open to everybody needs a restart"
            )
        return settings


def _wrong(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"The settings were not reloaded: {error}")


def _different(old: Settings, new: Settings) -> Iterator[str]:
    for name in Settings.model_fields:
        before, now = getattr(old, name), getattr(new, name)
        if before == now or name in APPLIED:
            continue
        setting = (PREFIX + name).upper()
        if isinstance(before, BaseModel):
            fields = [each for each in type(before).model_fields if getattr(before, each) != getattr(now, each)]
            yield from (f"{setting}{JOINT}{each.upper()}" for each in fields)
        else:
            yield setting

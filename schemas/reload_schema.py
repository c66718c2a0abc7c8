"""POST /admin/reload on the wire."""

from typing import Literal

from pydantic import BaseModel, Field


class ReloadedModels(BaseModel):
    added: list[str] = Field([], description="loaded now or at their first request, as they would be at a start")
    changed: list[str] = Field([], description="the same; running answers are made to their end as they began")
    removed: list[str] = []


class ReloadedKeys(BaseModel):
    added: int = Field(description="keys of the settings")
    removed: int


class Reload(BaseModel):
    object: Literal["reload"] = "reload"
    models: ReloadedModels
    keys: ReloadedKeys
    needs_restart: list[str] = Field(description="settings that have changed, too, and hold from the next start on")

"""Names of a hub's models; without the hub's library, whose import takes a moment."""

import re
from dataclasses import dataclass
from pathlib import Path

from services.errors import InvalidRequest

# no "..", which would leave a folder, and no "--", which the hub's cache puts between owner and name
NAME = re.compile(r"(?!.*(\.\.|--))(?P<repository>\w[\w.-]*/\w[\w.-]*)(:(?P<variant>\w[\w.-]*))?", re.ASCII)
MAX_NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class HubName:
    repository: str  # owner/name
    variant: str | None = None  # of its GGUF files, as Q4_K_M

    def __str__(self) -> str:
        return f"{self.repository}:{self.variant}" if self.variant else self.repository


@dataclass(frozen=True, slots=True)
class Stored:
    """A model in the hub's cache on this disk: a repository's newest snapshot, or one kind of its GGUF files."""

    name: str  # owner/name or owner/name:Q4_K_M
    path: Path  # what an engine opens
    size: int  # bytes on disk; of a snapshot, all revisions
    files: tuple[Path, ...] = ()  # GGUF files

    @property
    def repository(self) -> str:
        return self.name.partition(":")[0]


def parse(name: str) -> HubName:
    """Raises InvalidRequest."""
    found = NAME.fullmatch(name) if len(name) <= MAX_NAME_CHARS else None
    if not found:
        raise InvalidRequest(
            f"{name[:MAX_NAME_CHARS]!r} is no name of a hub's model: owner/name, or owner/name:Q4_K_M for a GGUF file",
            param="model",
        )
    return HubName(found["repository"], found["variant"])

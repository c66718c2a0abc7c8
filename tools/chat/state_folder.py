"""The user's folder for what a program remembers by itself: the input history, and an own server's log and database."""

import os
from pathlib import Path


def state_folder() -> Path:
    """Created for the user alone."""
    base = os.environ.get("XDG_STATE_HOME")
    folder = (Path(base) if base else Path.home() / ".local" / "state") / "parley"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder

"""The user's editor."""

import os
import shlex
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.chat.errors import ChatError


def editor() -> str | None:
    return os.environ.get("VISUAL") or os.environ.get("EDITOR")


def edit_text(text: str, command: str) -> str:
    with TemporaryDirectory(prefix="parley-") as folder:
        file = Path(folder) / "question.md"
        file.write_text(text, "utf-8")
        try:
            subprocess.run([*shlex.split(command), str(file)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ChatError(f"The editor failed: {error}") from error
        return file.read_text("utf-8").strip()

"""The process of a chat's own server: `parley serve`, which ends when its parent does, however that ended."""

import os
import signal
import sys
import threading
from pathlib import Path


def main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _keep_history()
    from tools.cli import app

    app(["serve", *sys.argv[1:]], prog_name="parley")


def _end_with_parent() -> None:
    """The standard input is a pipe that the parent never writes to: it ends with the parent."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _keep_history() -> None:
    """In the user's state folder, unless the settings or the working directory have a database."""
    from app.common import configuration
    from app.common.exits import in_one_line
    from app.common.settings import DatabaseSettings
    from tools.chat.state_folder import state_folder

    with in_one_line():
        url = configuration.read().database.url
    if url == DatabaseSettings().url and not Path("parley.db").exists():
        os.environ["PARLEY_DATABASE__URL"] = f"sqlite+aiosqlite:///{state_folder() / 'parley.db'}"


if __name__ == "__main__":
    main()

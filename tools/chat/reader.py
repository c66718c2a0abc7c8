"""Reads questions: line editing, several lines, a history that is kept, completion of the commands."""

import os
from collections.abc import Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from tools.chat.state_folder import state_folder

HISTORY = "chat_history"
PROMPT = "> "
CONTINUED = ". "

keys = KeyBindings()


@keys.add("enter")
@keys.add("c-j")  # Enter, typed while an answer was written
def _send(event: KeyPressEvent) -> None:
    event.current_buffer.validate_and_handle()


@keys.add("escape", "enter")
@keys.add("escape", "c-j")
def _new_line(event: KeyPressEvent) -> None:
    event.current_buffer.insert_text("\n")


class Reader:
    def __init__(self, commands: Iterable[str]) -> None:
        history = state_folder() / HISTORY
        os.close(os.open(history, os.O_CREAT | os.O_WRONLY, 0o600))  # for the user alone
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            history=FileHistory(history),
            key_bindings=keys,
            multiline=True,
            prompt_continuation=CONTINUED,
            completer=WordCompleter(sorted(commands), sentence=True),
            complete_while_typing=False,
            enable_open_in_editor=True,
        )

    def read(self, draft: str = "") -> str:
        """Raises EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
        return self._session.prompt(default=draft)

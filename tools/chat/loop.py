"""The interactive chat: reads questions and commands until Ctrl-D."""

from collections.abc import Sequence

from tools.chat.commands import COMMANDS, Context, run_command, show_branch_end
from tools.chat.errors import ChatError, LostConnection
from tools.chat.events import Answer
from tools.chat.reader import Reader
from tools.chat.readiness import wait_until_ready, waiting_text
from tools.chat.screen import Screen
from tools.chat.session import Session, Turn, question
from tools.chat.tree import Tree


def answer(session: Session, screen: Screen, turn: Turn) -> Answer:
    wait_until_ready(session.client, screen)
    with screen.answering(waiting_text(session.client, session.model)) as view:
        found = session.ask(turn, view.show)
    if found.note:
        screen.hint(found.note)
    return found


class Loop:
    def __init__(self, session: Session, screen: Screen, images: Sequence[str]) -> None:
        reader = Reader(COMMANDS)
        self.context = Context(session, screen, reader.read)
        self._images = images  # of the first question
        self._draft = ""  # a question that was not answered, to be sent again

    def run(self, resumed: Tree | None) -> None:
        if resumed is not None:
            show_branch_end(self.context, resumed)
        self.context.screen.hint("/help shows the commands; Alt-Enter begins a new line; Ctrl-D leaves.")
        while True:
            draft, self._draft = self._draft, ""
            try:
                line = self.context.read(draft).strip()
            except KeyboardInterrupt:
                continue  # an empty line instead
            except EOFError:
                return
            if line:
                self._handle(line)

    def _handle(self, line: str) -> None:
        try:
            turn = run_command(self.context, line) if line.startswith("/") else question(line, self._images)
        except (KeyboardInterrupt, EOFError):
            return
        except ChatError as error:
            self.context.screen.problem(str(error))
            return
        if turn is not None:
            self._answer(turn)

    def _answer(self, turn: Turn) -> None:
        screen = self.context.screen
        try:
            answer(self.context.session, screen, turn)
            self._images = ()
        except KeyboardInterrupt:
            screen.hint("Stopped before the answer began.")
            self._draft = turn.text
        except LostConnection as error:
            screen.problem(f"{error}. Enter sends the question again.")
            self._draft = turn.text
        except ChatError as error:
            screen.problem(str(error))
            self._draft = turn.text

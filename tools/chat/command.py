"""The command line of `parley chat`."""

import base64
import json
import mimetypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tools.chat.clean_text import clean_line
from tools.chat.client import Client
from tools.chat.errors import ChatError
from tools.chat.events import Answer
from tools.chat.loop import Loop, answer
from tools.chat.own_server import own_server
from tools.chat.readiness import wait_until_ready
from tools.chat.screen import Screen
from tools.chat.session import Session, Turn, question
from tools.chat.view import SilentView

FAILED = 1
INTERRUPTED = 128 + signal.SIGINT

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def chat(
    prompt: Annotated[
        list[str] | None, typer.Argument(show_default="a chat", help="Asked; its answer ends it.")
    ] = None,
    go_on: Annotated[bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")] = False,
    conversation: Annotated[str | None, typer.Option(metavar="ID", help="Go on with this conversation.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", show_default="the server's first")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="The system prompt.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", metavar="FILE", help="Sent with the question; repeatable.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: answer, model, usage, conversation_id.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(show_default="the model's")] = None,
    top_p: Annotated[float | None, typer.Option(show_default="the model's")] = None,
    max_tokens: Annotated[int | None, typer.Option(show_default="none", help="Maximum tokens of an answer.")] = None,
    url: Annotated[
        str, typer.Option(help="The server; one is started if none answers there.")
    ] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="PARLEY_API_KEY", show_default=False, help="Others on this machine see options, not variables."
        ),
    ] = None,
) -> None:
    """Chat in the terminal. What is piped in goes with the question: git diff | parley chat "review this"."""
    with _one_line_errors(), ExitStack() as stack:
        prompt_text = _prompt_text(" ".join(prompt or []))
        images = [_data_url(path) for path in image or []]
        if prompt_text is None and as_json:
            raise ChatError("--json goes with a prompt")
        screen = Screen()
        client = Client(url if "://" in url else f"http://{url}", api_key)
        stack.callback(client.close)
        if not client.is_answering():
            with screen.waiting(f"No server answers at {client.url}: one is started …"):
                stack.enter_context(own_server(client, model))
            model = None  # it serves this one
        sampling = {"temperature": temperature, "top_p": top_p, "max_output_tokens": max_tokens}
        session = Session(client, model, sampling=sampling)
        resumed = conversation or (client.newest_conversation() if go_on else None)
        tree = session.open(resumed) if resumed else None
        if system is not None:
            session.set_system(system)
        if prompt_text is None:
            Loop(session, screen, images).run(tree)
        elif as_json:
            _print_json(session, screen, question(prompt_text, images))
        else:
            _check(answer(session, screen, question(prompt_text, images)))


def _prompt_text(prompt: str) -> str | None:
    """The prompt with what is piped in; None: questions are typed."""
    if sys.stdin is None or sys.stdin.isatty():
        return prompt or None
    piped = sys.stdin.buffer.read().decode("utf-8", errors="replace").strip()
    text = "\n\n".join(each for each in (prompt, piped) if each)
    if not text:
        raise ChatError("There is no question: the standard input is empty, and no terminal")
    return text


def _data_url(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    try:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError as error:
        raise ChatError(f"{path}: {error.strerror}") from error


def _print_json(session: Session, screen: Screen, turn: Turn) -> None:
    wait_until_ready(session.client, screen)
    found = session.ask(turn, SilentView().show)
    usage, model = found.response["usage"], found.response["model"]
    facts = {"answer": found.text, "model": model, "usage": usage, "conversation_id": session.conversation}
    typer.echo(json.dumps(facts))  # control characters are escaped
    _check(found)


def _check(found: Answer) -> None:
    if found.status == "cancelled":
        sys.exit(INTERRUPTED)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)  # clean up: end the answer and the own server
    try:
        yield
    except ChatError as error:
        typer.echo(f"Error: {clean_line(str(error))}", err=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)

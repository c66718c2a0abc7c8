"""The slash commands: one function each. A command returns what is asked next, if anything is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.chat.clean_text import clean_line
from tools.chat.editor import edit_text, editor
from tools.chat.errors import ChatError
from tools.chat.screen import Screen
from tools.chat.session import Session, Turn, question
from tools.chat.transcript import save
from tools.chat.tree import Node, Tree

PREVIEW_CHARS = 60


@dataclass(slots=True)
class Context:
    session: Session
    screen: Screen
    read: Callable[[str], str]  # of a line that starts with a draft


Run = Callable[[Context, str], Turn | None]


@dataclass(frozen=True, slots=True)
class Command:
    usage: str
    help: str
    run: Run


COMMANDS: dict[str, Command] = {}


def command(usage: str, help: str) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        COMMANDS[usage.split()[0]] = Command(usage, help, run)
        return run

    return register


def run_command(context: Context, line: str) -> Turn | None:
    name, _, argument = line.partition(" ")
    if (found := COMMANDS.get(name)) is None:
        raise ChatError(f"There is no command {name}: /help shows all")
    return found.run(context, argument.strip())


@command("/edit", "edit the last question and ask it as a branch")
def edit(context: Context, argument: str) -> Turn | None:
    last = _last_question(context.session)
    command = editor()
    text = edit_text(last.text, command) if command else context.read(last.text)
    if not text.strip():
        return None
    context.screen.hint(f"> {clean_line(text)}")
    images = [part["image_url"] for part in _parts(last) if part.get("type") == "input_image"]
    return question(text, images, parent=last.parent)


@command("/regen", "answer the last question once more, as a branch")
def regenerate(context: Context, argument: str) -> Turn:
    last = _last_question(context.session)
    return Turn(last.text, parent=last.id)


@command("/branch [N]", "list the branches, or change to one")
def branch(context: Context, argument: str) -> None:
    session, tree = context.session, context.session.tree()
    if argument:
        session.tip = _nth(tree.tips, argument)
        show_branch_end(context, tree)
        return
    for number, tip in enumerate(tree.tips, 1):
        mark = "*" if tip == session.tip else " "
        context.screen.rows([(f"{mark} {number}", _preview(tree, tip))])


@command("/model [NAME]", "list the models, or change to one")
def model(context: Context, argument: str) -> None:
    session = context.session
    names = [str(each["id"]) for each in session.client.chat_models()]
    if argument and argument not in names:
        raise ChatError(f"There is no model {argument}: {', '.join(names)}")
    session.model = argument or session.model
    current = session.model or names[0]
    context.screen.rows(("*" if name == current else " ", name) for name in names)


@command("/system [TEXT]", "show the system prompt, or change it; - removes it")
def system(context: Context, argument: str) -> None:
    if argument:
        context.session.set_system(None if argument == "-" else argument)
    context.screen.hint(context.session.system or "No system prompt")


@command("/search WORDS", "find messages with all of these words")
def search(context: Context, argument: str) -> None:
    if not argument:
        raise ChatError("Search for what? /search WORDS")
    found = context.session.client.search(argument)
    context.screen.rows((each["conversation_id"] or "-", clean_line(each["snippet"])) for each in found)
    if not found:
        context.screen.hint("Nothing found")


@command("/open ID", "go on with another conversation")
def open_conversation(context: Context, argument: str) -> None:
    if not argument:
        raise ChatError("Which one? /open ID; /search finds it")
    show_branch_end(context, context.session.open(argument))


@command("/save FILE", "write this branch to a new file, .md or .json")
def save_branch(context: Context, argument: str) -> None:
    if not argument:
        raise ChatError("Where to? /save FILE")
    session = context.session
    save(Path(argument).expanduser(), session.conversation or "", session.tree().branch(session.tip))
    context.screen.hint(f"Saved: {argument}")


@command("/thought", "show what the model thought before its last answer")
def thought(context: Context, argument: str) -> None:
    context.screen.hint(context.screen.thought.strip() or "There was no thought")


@command("/new", "begin a new conversation")
def new(context: Context, argument: str) -> None:
    context.session.reset()
    context.screen.hint("A new conversation")


@command("/help", "show this")
def help(context: Context, argument: str) -> None:
    context.screen.rows((each.usage, each.help) for each in COMMANDS.values())
    context.screen.hint("Alt-Enter, or Esc and Enter: a new line. Ctrl-C: end the answer. Ctrl-D: leave.")


def show_branch_end(context: Context, tree: Tree) -> None:
    """The last question and its answer, to go on from."""
    nodes = tree.branch(context.session.tip)
    context.screen.hint(f"{context.session.conversation}: {len(nodes)} items")
    last = tree.last_question(context.session.tip)
    if last is not None:
        context.screen.hint(f"> {last.text}")
        for node in nodes[nodes.index(last) + 1 :]:
            if node.item["type"] == "message":
                context.screen.markdown(node.text)
    context.screen.write()


def _last_question(session: Session) -> Node:
    if (last := session.tree().last_question(session.tip)) is None:
        raise ChatError("Nothing was asked yet")
    return last


def _parts(node: Node) -> list[dict[str, str]]:
    content = node.item.get("content")
    return content if isinstance(content, list) else []


def _nth(tips: list[str], argument: str) -> str:
    if not argument.isdecimal() or not 1 <= int(argument) <= len(tips):
        raise ChatError(f"There is no branch {argument}: /branch lists them")
    return tips[int(argument) - 1]


def _preview(tree: Tree, tip: str) -> str:
    last_question = tree.last_question(tip)
    last = tree.branch(tip)[-1]
    texts = [last_question.text if last_question else "", last.text if last is not last_question else ""]
    return " | ".join(clean_line(each)[:PREVIEW_CHARS] for each in texts if each)

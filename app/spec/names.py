"""Parameters of the chat completion that a spec asks for, by the names that its own protocol has for them."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from services.errors import PromptTooLong, ServiceError

Names = Mapping[str, str]  # dotted paths, for what is inside them too; all indices may be "*" on both sides
ErrorTranslation = Callable[[ServiceError], ServiceError]

QUOTED = re.compile(r"'([a-z_]\w*(?:\.[\w\-]+)*)'")


def renamed(path: str, names: Names) -> str:
    """By the longest beginning that has a name; what follows it stays, unless the name ends the path with a dot."""
    steps = path.split(".")
    for end in range(len(steps), 0, -1):
        for pattern in _patterns(steps[:end]):
            if pattern in names:
                return _filled(names[pattern], steps[:end], steps[end:])
    return path


def _patterns(steps: list[str]) -> Iterator[str]:
    yield ".".join(steps)
    yield ".".join("*" if step.isdecimal() else step for step in steps)


def _filled(name: str, matched: list[str], rest: list[str]) -> str:
    indices = iter([step for step in matched if step.isdecimal()])
    steps = [next(indices, "*") if step == "*" else step for step in name.rstrip(".").split(".")]
    return ".".join(steps if name.endswith(".") else [*steps, *rest])


def translate_error(error: ServiceError, names: Names, too_long: str | None = None) -> ServiceError:
    """The error itself, which names parameters as the protocol does. `too_long`: its words for that, with `{tokens}`
    and `{limit}`, by which its clients know that they are to send less."""
    if isinstance(error, PromptTooLong) and too_long:
        error.message = too_long.format(tokens=error.tokens, limit=error.limit)
    else:
        error.message = QUOTED.sub(lambda found: f"'{renamed(found[1], names)}'", error.message)
    error.param = error.param and renamed(error.param, names)
    return error


@contextmanager
def translate_errors(words: ErrorTranslation) -> Iterator[None]:
    try:
        yield
    except ServiceError as error:
        raise words(error) from error.__cause__

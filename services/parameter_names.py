"""Names of a chat completion's parameters in other protocols.

A protocol has one table: the pipeline's name -> its own. Errors and headers name parameters by it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from services.errors import PromptTooLong, ServiceError

# Dotted paths, which stand for what is inside them too. "*" is any index, on both sides; a name that ends with a dot
# ends the path.
ParameterNames = Mapping[str, str]
ErrorTranslation = Callable[[ServiceError], ServiceError]


def renamed(path: str, names: ParameterNames) -> str:
    """By the longest beginning of the path that is in the table."""
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


def translate_error(error: ServiceError, names: ParameterNames, too_long: str | None = None) -> ServiceError:
    """The same error with the protocol's names. `too_long`: the protocol's template of PromptTooLong, by which its
    clients recognise the error."""
    if isinstance(error, PromptTooLong) and too_long:
        param = error.param and renamed(error.param, names)
        return PromptTooLong(error.tokens, error.limit, param=param, template=too_long)
    return error.renamed(partial(renamed, names=names))


@contextmanager
def translate_errors(translate: ErrorTranslation) -> Iterator[None]:
    try:
        yield
    except ServiceError as error:
        raise translate(error) from error.__cause__

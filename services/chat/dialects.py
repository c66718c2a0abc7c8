"""How models write down what they think and which tools they call: one entry for each format, as data."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import Environment, TemplateSyntaxError, meta

ENVIRONMENT = Environment(extensions=["jinja2.ext.loopcontrols"])  # nothing is rendered
NAME = "(?P<name>[a-zA-Z0-9_.-]{1,128})"
SPACE = r"\s*"
ARGUMENTS = "ARGUMENTS"  # stands for the arguments of a call, as NAME_HERE for the tool's name
NAME_HERE = "NAME"


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before a call's arguments."""

    whole: re.Pattern[str]
    begun: re.Pattern[str]
    wrapped: bool  # in an object, which goes on after the arguments

    @classmethod
    def of(cls, *atoms: str, wrapped: bool, before: str = r"\{") -> "Header":
        """`atoms` are regular expressions which, cut off anywhere, still match: letters and repetitions."""
        begun = "".join(f"(?:{atom}" for atom in atoms) + ")?" * len(atoms)
        return cls(re.compile("".join(atoms) + f"(?={before})"), re.compile(begun), wrapped)


def _object(arguments: str) -> Header:
    """`{"name": "f", "arguments": ` and the like."""
    name = [r"\{", SPACE, *'"name"', SPACE, ":", SPACE, '"', NAME, '"']
    return Header.of(*name, SPACE, ",", SPACE, *f'"{arguments}"', SPACE, ":", SPACE, wrapped=True)


NAMED = Header.of(NAME, r"\[", *"ARGS", r"\]", SPACE, wrapped=False)  # f[ARGS]
NUMBERED = Header.of(NAME, r"\[", *"CALL_ID", r"\]", "[a-zA-Z0-9_-]*", r"\[", *"ARGS", r"\]", SPACE, wrapped=False)


RAW = '{"name": "NAME"}\n'  # and then a text that is no JSON
_RAW_ATOMS = [r"\{", SPACE, *'"name"', SPACE, ":", SPACE, '"', NAME, '"', SPACE, r"\}", "\n"]
RAW_HEADER = Header.of(*_RAW_ATOMS, wrapped=False, before="")


@dataclass(frozen=True, slots=True)
class Calls:
    """How tool calls are written.

    The parts of their text are markers, where they look like one, and else text, with the tool's name and arguments
    in the places of the two words. Where a call may be bare, it can also begin the answer without a marker.
    """

    headers: tuple[Header, ...]
    call: tuple[str, ...]
    between: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    marker: str = ""
    end: str = ""  # after each call
    bare: bool = False
    short_ids: bool = False  # templates take ids of nine letters and digits only

    @property
    def raw_end(self) -> str:
        """What ends the text of a call that is no JSON, if something does before the answer ends."""
        return self.end or (self.marker if self.marker in self.between else "")

    def write(self, made: Iterable[tuple[str, str]]) -> str:
        """Names and JSON arguments, as a model writes them."""
        texts = ["".join(_filled(part, name, arguments) for part in self.call) for name, arguments in made]
        return "".join(self.before) + "".join(self.between).join(texts) + "".join(self.after)


def _filled(part: str, name: str, arguments: str) -> str:
    return arguments if part == ARGUMENTS else part.replace(NAME_HERE, name)


HERMES = Calls(
    headers=(_object("arguments"),),
    before=("<tool_call>",),
    call=('\n{"name": "NAME", "arguments": ', ARGUMENTS, "}\n", "</tool_call>"),
    between=("\n", "<tool_call>"),
    marker="<tool_call>",
    end="</tool_call>",
)
LLAMA = Calls(
    headers=(_object("parameters"), _object("arguments")),
    call=('{"name": "NAME", "parameters": ', ARGUMENTS, "}"),
    between=("; ",),
    marker="<|python_tag|>",
    bare=True,
)
MISTRAL = Calls(
    headers=(_object("arguments"), NAMED, NUMBERED),
    before=("[TOOL_CALLS]", "["),
    call=('{"name": "NAME", "arguments": ', ARGUMENTS, "}"),
    between=(", ",),
    after=("]",),
    marker="[TOOL_CALLS]",
    short_ids=True,
)
MISTRAL_ARGS = Calls(
    headers=MISTRAL.headers,
    before=("[TOOL_CALLS]",),
    call=(NAME_HERE, "[ARGS]", ARGUMENTS),
    between=("[TOOL_CALLS]",),
    marker="[TOOL_CALLS]",
    short_ids=True,
)
JSON = Calls(
    headers=(_object("arguments"), _object("parameters")),
    before=("[",),
    call=('{"name": "NAME", "arguments": ', ARGUMENTS, "}"),
    between=(", ",),
    after=("]",),
    bare=True,
)
CALLS = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL, "mistral-args": MISTRAL_ARGS, "json": JSON}


@dataclass(frozen=True, slots=True)
class Thinking:
    begin: str
    end: str


TAGS = Thinking("<think>", "</think>")
BRACKETS = Thinking("[THINK]", "[/THINK]")
SWITCHES = ("enable_thinking", "thinking")  # what templates call the argument that turns it on or off


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a model was taught to write, as far as its chat template tells."""

    calls: Calls = JSON
    shows_tools: bool = False  # the template itself, and the calls and results of earlier messages
    takes_system: bool = True
    thinking: Thinking | None = None
    switch: str | None = None
    has_effort: bool = False


@lru_cache
def _dialect(template: str, name: str | None) -> Dialect:
    calls = CALLS[name] if name else _calls(template)
    arguments = _arguments(template)
    return Dialect(
        calls=calls or JSON,
        shows_tools=calls is not None and "tools" in arguments,
        takes_system="System role not supported" not in template,
        thinking=next((each for each in (TAGS, BRACKETS) if each.end in template), None),
        switch=next((each for each in SWITCHES if each in arguments), None),
        has_effort="reasoning_effort" in arguments,
    )


def _arguments(template: str) -> set[str]:
    """What it can be called with."""
    try:
        return meta.find_undeclared_variables(ENVIRONMENT.parse(template))
    except TemplateSyntaxError:  # it has tags of its own
        return set(re.findall(r"\w+", template))


def dialect_of(template: str | Mapping[str, str] | None, name: str | None = None) -> Dialect:
    """`name`: of the format of calls, where the template does not show it."""
    return _dialect(template if isinstance(template, str) else "\n".join((template or {}).values()), name)


def _calls(template: str) -> Calls | None:
    """None: it shows no tools, or in a format of which there is no entry."""
    if "<function=" in template or "<tool_calls>" in template:
        return None
    if "<tool_call>" in template and '"arguments' in template.replace("\\", ""):
        return HERMES
    if "[TOOL_CALLS]" in template:
        return MISTRAL_ARGS if "[ARGS]" in template else MISTRAL
    if "ipython" in template and '"parameters' in template.replace("\\", ""):
        return LLAMA
    return None

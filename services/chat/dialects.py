"""How models write down what they think and which tools they call: one entry for each format, as data."""

import re
from dataclasses import dataclass

NAME = "(?P<name>[a-zA-Z0-9_.-]{1,64})"
SPACE = r"\s*"


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before a call's arguments."""

    whole: re.Pattern[str]
    begun: re.Pattern[str]
    wrapped: bool  # in an object, which goes on after the arguments

    @classmethod
    def of(cls, *atoms: str, wrapped: bool) -> "Header":
        """`atoms` are regular expressions, none of which can be cut by the end of a piece but repetitions."""
        begun = "".join(f"(?:{atom}" for atom in atoms) + ")?" * len(atoms)
        return cls(re.compile("".join(atoms) + r"(?=\{)"), re.compile(begun), wrapped)


def _object(arguments: str) -> Header:
    """`{"name": "f", "arguments": ` and the like."""
    name = [r"\{", SPACE, *'"name"', SPACE, ":", SPACE, '"', NAME, '"']
    return Header.of(*name, SPACE, ",", SPACE, *f'"{arguments}"', SPACE, ":", SPACE, wrapped=True)


NAMED = Header.of(NAME, r"\[", *"ARGS", r"\]", SPACE, wrapped=False)  # f[ARGS]


@dataclass(frozen=True, slots=True)
class Thinking:
    begin: str
    end: str


@dataclass(frozen=True, slots=True)
class Calls:
    """How tool calls are written. Where one may be bare, it can also begin the answer without a marker."""

    headers: tuple[Header, ...]
    marker: str = ""
    end: str = ""  # after each call
    bare: bool = False


HERMES = Calls((_object("arguments"),), marker="<tool_call>", end="</tool_call>")
LLAMA = Calls((_object("parameters"), _object("arguments")), marker="<|python_tag|>", bare=True)
MISTRAL = Calls((_object("arguments"), NAMED), marker="[TOOL_CALLS]")
JSON = Calls((_object("arguments"), _object("parameters")), bare=True)

TAGS = Thinking("<think>", "</think>")
BRACKETS = Thinking("[THINK]", "[/THINK]")

"""The tool calls of one answer as events. A custom tool's input is read out of the JSON that the model writes it in."""

from collections.abc import Mapping
from typing import Any
from uuid import NAMESPACE_OID, uuid4, uuid5

from services.chat.events import Arguments, Callee, ToolCall
from services.chat.parsing.input_text import InputText, unwrapped
from services.chat.parsing.scanner import Scanner


class CallWriter:
    """`names`: of the tools that may be called. `callees`: those that are no functions of the same name.

    `parameters`: JSON schemas of arguments, by name, for formats that do not show a value's type. `answer_id`: calls of
    the same answer get the same ids wherever it is parsed.
    """

    def __init__(
        self,
        scanner: Scanner,
        names: frozenset[str],
        callees: Mapping[str, Callee],
        parameters: Mapping[str, Mapping[str, Any]],
        answer_id: str = "",
    ) -> None:
        self._answer_id = answer_id or uuid4().hex
        self.names = names
        self.parameters = parameters
        self.num_calls = 0
        self._scanner = scanner
        self._callees = callees
        self._callee = Callee("")
        self._input: InputText | None = None  # of the call, while it comes

    def is_custom(self, name: str) -> bool:
        return name in self.names and name in self._callees and self._callees[name].kind == "custom"

    @property
    def has_customs(self) -> bool:
        return any(each.kind == "custom" for each in self._callees.values())

    def begin(self, name: str) -> None:
        """Its arguments follow: JSON, of a custom tool with its input inside."""
        self._begin(name)
        self._input = InputText() if self._callee.kind == "custom" else None

    def begin_text(self, name: str) -> None:
        """Its input follows as it is."""
        self._begin(name)

    def whole(self, name: str, arguments: str) -> None:
        """A call whose arguments have come to their end."""
        self._begin(name)
        self._emit(unwrapped(arguments) if self._callee.kind == "custom" else arguments)

    def arguments(self, text: str) -> None:
        self._emit(self._input.feed(text) if self._input and text else text)

    def end(self) -> None:
        if self._input:
            self._emit(self._input.finish())
        self._input = None

    def _begin(self, name: str) -> None:
        self.end()
        callee = self._callee = self._callees.get(name) or Callee(name)
        index = self._scanner.index
        id = f"call_{uuid5(NAMESPACE_OID, f'{self._answer_id}/{index}/{self.num_calls}').hex}"
        self._scanner.emit(
            ToolCall(id, callee.name, self.num_calls, index=index, kind=callee.kind, namespace=callee.namespace)
        )
        self.num_calls += 1

    def _emit(self, text: str) -> None:
        if text:
            self._scanner.emit(Arguments(text, self.num_calls - 1, index=self._scanner.index, kind=self._callee.kind))

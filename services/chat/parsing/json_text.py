"""Where JSON ends in text that is still coming."""


class JsonEnd:
    """Finds where an object or a list ends. `depth`: how many of them have begun already."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._quoted = False
        self._escaped = False

    def feed(self, text: str) -> int | None:
        """How many characters of `text` still belong to it; None: all of them, and more is to come."""
        for place, letter in enumerate(text, 1):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = letter == "\\"
                self._quoted = letter != '"'
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return place
        return None

"""What a browser's EventSource makes of a stream: "Interpreting an event stream" of the HTML standard."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dispatched:
    event: str
    data: str
    last_event_id: str


class EventSource:
    """Feed it a whole body; `last_event_id` is what the browser would send when it reconnects."""

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry: int | None = None

    def read(self, body: bytes) -> list[Dispatched]:
        events, data, name = [], "", ""
        *lines, _unfinished = re.split("\r\n|\n|\r", body.decode().removeprefix("\ufeff"))
        for line in lines:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match field:
                case "" if not line:
                    if data:
                        events.append(Dispatched(name or "message", data.removesuffix("\n"), self.last_event_id))
                    data, name = "", ""
                case "data":
                    data += value + "\n"
                case "event":
                    name = value
                case "id" if "\0" not in value:
                    self.last_event_id = value
                case "retry" if value.isascii() and value.isdigit():
                    self.retry = int(value)
        return events

"""Logs: one line an event, with the request's id, readable or as JSON."""

import logging
from contextvars import ContextVar
from datetime import UTC, datetime

import orjson

request_id: ContextVar[str] = ContextVar("request_id", default="-")

# h11 says this for every request of Java's HttpClient, which offers h2c each time and is content with HTTP/1.1
NO_FILES = "socket.accept() out of system resource"
NOISE = ("Unsupported upgrade request.", "No supported WebSocket library detected.")


OURS = ("app", "database", "parley", "services", "tools")


def configure(level: str, format: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(
        _Json() if format == "json" else _Text("%(asctime)s %(levelname)-7s %(request_id)s %(message)s")
    )
    handler.addFilter(_with_request_id)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    _bound_libraries()
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"  # our own access line knows the request's id
    logging.getLogger("uvicorn.error").addFilter(lambda record: not record.getMessage().startswith(NOISE))
    logging.getLogger("asyncio").addFilter(Seldom(NO_FILES))
    for chatty in ("httpx", "httpx2", "alembic", "filelock", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _bound_libraries() -> None:
    """Details are ours alone: those of libraries are statements with their values, chunks of answers and queries."""
    root = logging.getLogger()
    for name in OURS:
        logging.getLogger(name).setLevel(root.level if root.level < logging.INFO else logging.NOTSET)
    root.setLevel(max(root.level, logging.INFO))


def _with_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True


class Seldom(logging.Filter):
    """One in ten seconds of a line that comes in thousands, without its traceback."""

    def __init__(self, start: str, seconds: float = 10.0) -> None:
        super().__init__()
        self._start = start
        self._seconds = seconds
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.getMessage().startswith(self._start):
            return True
        is_due = record.created >= self._next
        if is_due:
            self._next = record.created + self._seconds
            record.exc_info = record.exc_text = None
            record.msg, record.args = record.getMessage().partition("\n")[0], None
        return is_due


class _Text(logging.Formatter):
    """A caller's line break must not begin a line of its own, nor its escapes steer a terminal; a traceback may."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return line if line.isprintable() else "".join(map(_printable, line))


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()

"""Times on the command line: a duration (30d, 12h), or a date (UTC)."""

import re
import time
from datetime import UTC, datetime

UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
DURATION = re.compile(r"(\d{1,6})([mhdw])")


def until(text: str) -> float:
    """Seconds since the epoch; a duration is from now on. Raises ValueError."""
    moment = _moment(text, 1)
    if moment <= time.time():
        raise ValueError(f"{text} is over already")
    return moment


def since(text: str) -> float:
    """Seconds since the epoch; a duration is before now. Raises ValueError."""
    return _moment(text, -1)


def _moment(text: str, sign: int) -> float:
    if found := DURATION.fullmatch(text):
        return time.time() + sign * int(found[1]) * UNITS[found[2]]
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"'{text}' is neither a duration, such as 30d or 12h, nor a date, as 2030-12-31") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()

"""Fills a large history, and measures listing, opening and searching it over HTTP."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import quantiles

import requests

from database import repositories
from database.models import Conversation
from database.session import Database
from services.history.item_rows import ItemPosition, linked_rows, with_defaults
from tools.bench.load import WORDS

OWNER = "local"  # the owner without keys
ITEMS_EACH = 20
CHUNK = 250  # conversations per transaction
TIMES = 200  # repetitions of each request


@dataclass(slots=True)
class ScaleReport:
    conversations: int
    items: int
    fill_s: float
    p50_ms: dict[str, float] = field(default_factory=dict)
    p95_ms: dict[str, float] = field(default_factory=dict)


async def fill(url: str, conversations: int, note: Callable[[int], None]) -> float:
    """Returns the seconds it took. Texts have a dozen words out of a hundred, and one unique word per conversation."""
    database, began = Database(url), time.monotonic()
    try:
        for start in range(0, conversations, CHUNK):
            async with database.write() as session:
                found = repositories.of(session)
                for number in range(start, min(start + CHUNK, conversations)):
                    await found.conversations.add([_conversation(number)])
                    await found.items.add(linked_rows(_items(number), ItemPosition(OWNER, _id(number), float(number))))
            note(min(start + CHUNK, conversations))
    finally:
        await database.close()
    return time.monotonic() - began


def _id(number: int) -> str:
    return f"conv_{number:032x}"


def _conversation(number: int) -> Conversation:
    return Conversation(id=_id(number), owner=OWNER, created_at=float(number), updated_at=float(number))


def _items(number: int) -> Iterator[dict[str, object]]:
    rng = random.Random(number)
    for position in range(ITEMS_EACH):
        words = [*rng.choices(WORDS, k=12), *([f"marker{number}"] if position == 0 else [])]
        role, kind = ("user", "input_text") if position % 2 == 0 else ("assistant", "output_text")
        yield with_defaults({"type": "message", "role": role, "content": [{"type": kind, "text": " ".join(words)}]})


def measure(base: str, report: ScaleReport) -> None:
    rng = random.Random(1)

    def anywhere() -> int:
        return rng.randrange(report.conversations)

    def page(after: int) -> str:
        return f"/v1/conversations?limit=20&after={_id(after)}"

    paths: dict[str, Callable[[], str]] = {
        "list, first page": lambda: "/v1/conversations?limit=20",
        "list, any page": lambda: page(anywhere()),
        "open": lambda: f"/v1/conversations/{_id(anywhere())}/items?limit=100&order=asc",
        "search, a rare word": lambda: f"/v1/conversations/search?query=marker{anywhere()}",
        "search, two common words": lambda: f"/v1/conversations/search?query={'+'.join(rng.sample(WORDS, 2))}",
        "search, a common word": lambda: f"/v1/conversations/search?query={rng.choice(WORDS)}",
    }
    with requests.Session() as client:
        for name, path in paths.items():
            times = sorted(_timed(client, base + path()) for _ in range(TIMES))
            cuts = quantiles(times, n=20)
            report.p50_ms[name], report.p95_ms[name] = round(cuts[9], 2), round(cuts[18], 2)


def _timed(client: requests.Session, url: str) -> float:
    began = time.perf_counter()
    answer = client.get(url, timeout=60)
    took = 1000 * (time.perf_counter() - began)
    answer.raise_for_status()
    if not answer.json()["data"]:
        raise RuntimeError(f"nothing was found: {url}")
    return took

"""The whole app on an engine that says one word, for many requests one after the other."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi.testclient import TestClient

from app.common.settings import Settings
from tests.fakes import FakeEngine, FakeTokenizer

# As Qwen3's: it shows tools, calls and thoughts, and thinks unless it is told not to.
THINKS = """\
{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{% for message in messages %}<{{ message.role }}>
{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}{{ message.content }}
{% for call in message.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endfor %}
{% if add_generation_prompt %}<assistant>{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}
"""


class Tokenizer(FakeTokenizer):
    """With a token for each mark of thinking, as real ones have it."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] if text in ("<think>", "</think>") else super().encode(text)


def engine(template: str) -> FakeEngine:
    engine = FakeEngine("Done.", max_length=1_000_000)
    engine.tokenizer = Tokenizer(template)
    return engine


@contextmanager
def serving(engine: FakeEngine, template: Path, database: Path) -> Iterator[TestClient]:
    """`template`: of the database."""
    from app.main import create_app  # builds an app of its own when it is imported: not for tests that need none

    shutil.copy(template, database)
    url = {"url": f"sqlite:///{database}", "migrate": False}
    settings = Settings(_env_file=None, database=url, api_keys=[], model={"name": "fake-chat"})
    before = logging.getLogger().handlers[:]
    with TestClient(create_app(settings, build=engine.builder()), base_url="http://127.0.0.1") as client:
        yield client
    logging.getLogger().handlers[:] = before

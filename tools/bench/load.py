"""Loads: requests generated from a seed, the same for every target and run."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from random import Random
from typing import ClassVar

import orjson

WORDS = """
    river stone window garden letter winter market shadow bridge candle silver forest engine mirror harbour blanket
    thunder pencil orange castle whisper ladder pocket island teacher copper meadow feather button lantern violin
    kitchen anchor basket village compass dragon curtain hammer morning paper rocket saddle temple umbrella valley
    wagon yellow zebra archive barrel cotton desert elbow falcon glacier hollow ivory jacket kettle lemon marble needle
    orchard pepper quarry ribbon sailor tunnel uncle velvet walnut yacht apron beacon cellar dawn ember fountain
""".split()  # noqa: SIM905  a list would take a line a word
TASK = "Write a long story in which all of these words appear."
TEXT_WORDS = (5, 120)

Body = dict[str, object]


@dataclass(frozen=True, slots=True)
class ChatLoad:
    """One round of streamed answers. Prompts start with random words: behind the prefix they have nothing in common."""

    streams: int  # concurrent
    requests: int
    words: int  # of the user's message
    tokens: int  # of the answer: a maximum, or exact with fixed_length
    prefix_words: int = 0  # of a system message that all prompts share
    fixed_length: bool = False

    path: ClassVar[str] = "/chat/completions"
    unit: ClassVar[str] = "tok"
    latency: ClassVar[str] = "TTFT"

    @property
    def title(self) -> str:
        prefix = f" behind {self.prefix_words} shared ones" if self.prefix_words else ""
        return f"prompts of {self.words} words{prefix}, {'' if self.fixed_length else 'up to '}{self.tokens} tokens"

    def bodies(self, seed: int, number: int) -> Iterator[Body]:
        random = Random(f"{seed} {self} {number}")
        for _ in range(self.requests):
            words = random.choices(WORDS, k=max(self.words - len(TASK.split()), 1))
            yield self._body(seed, " ".join([*words, TASK]))

    def _body(self, seed: int, prompt: str) -> Body:
        messages = [{"role": "user", "content": prompt}]
        if self.prefix_words:
            prefix = Random(f"{seed} prefix").choices(WORDS, k=self.prefix_words)
            messages.insert(0, {"role": "system", "content": " ".join(prefix)})
        body: Body = {"messages": messages, "max_tokens": self.tokens, "temperature": 0}
        if self.fixed_length:
            body |= {"ignore_eos": True, "min_tokens": self.tokens}
        return body | {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True, slots=True)
class EmbeddingLoad:
    """One round of embeddings, several texts per request."""

    streams: int
    texts: int
    batch: int

    path: ClassVar[str] = "/embeddings"
    unit: ClassVar[str] = "texts"
    latency: ClassVar[str] = "latency"

    @property
    def title(self) -> str:
        return f"{self.texts} texts in batches of {self.batch}"

    def bodies(self, seed: int, number: int) -> Iterator[Body]:
        inputs = self.inputs(seed, number)
        for start in range(0, len(inputs), self.batch):
            # base64, as in the official client
            yield {"input": inputs[start : start + self.batch], "encoding_format": "base64"}

    def inputs(self, seed: int, number: int) -> list[str]:
        random = Random(f"{seed} {self} {number}")
        return [" ".join(random.choices(WORDS, k=random.randint(*TEXT_WORDS))) for _ in range(self.texts)]


Load = ChatLoad | EmbeddingLoad


def encoded(load: Load, model: str, seed: int, number: int, *, store: bool = False) -> list[bytes]:
    """`model`: or several, separated by commas, which requests name in turn."""
    about: Body = {"store": True} if store else {}
    bodies = zip(load.bodies(seed, number), cycle(model.split(",")))
    return [orjson.dumps({"model": each} | about | body) for body, each in bodies]

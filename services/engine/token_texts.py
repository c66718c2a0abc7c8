"""What a token is by itself: its bytes, also where these are only part of a character."""

import json
import re
from typing import Any

from services.engine.base import TokenLogprob

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
MARKER = re.compile(r"<\S+>|\[\S+\]")


class TokenTexts:
    """Of one tokenizer. Looked up once a token, in the engine's thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._steps = _steps(self._backend)
        self._special = self._backend.get_added_tokens_decoder() if self._backend else {}
        self._known: dict[int, tuple[str, bytes]] = {}

    @property
    def markers(self) -> dict[str, int]:
        """Tokens that stand for more than their text: the special ones, and those that only look it, as <think>."""
        special = {str(each.content): i for i, each in self._special.items() if each.special}
        return special | {str(each.content): i for i, each in self._special.items() if MARKER.fullmatch(each.content)}

    def named(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        if token not in self._known:
            raw = self.raw(token)
            self._known[token] = (raw.decode(errors="replace"), raw)
        return TokenLogprob(*self._known[token], logprob, top, token)

    def raw(self, token: int) -> bytes:
        """As each form of tokenizer writes its tokens down; one of no known form is asked for the text."""
        if token in self._special:
            return str(self._special[token].content).encode()
        written = self._backend.id_to_token(token) if self._backend else ""
        if written is None:  # models have more rows than tokenizers have tokens
            return b""
        if "ByteLevel" in self._steps:
            return bytes(BYTE_OF[letter] for letter in written if letter in BYTE_OF)
        if "ByteFallback" in self._steps and (found := BYTE.fullmatch(written)):
            return bytes.fromhex(found[1])
        if self._steps & {"Replace", "Metaspace"}:
            return str(written).replace("▁", " ").encode()
        return str(self._tokenizer.decode([token], skip_special_tokens=False)).encode()


def _steps(backend: Any) -> set[str]:
    """The names of what its decoder does."""
    decoder = getattr(backend, "decoder", None)
    state = json.loads(decoder.__getstate__()) if decoder else {}
    return {step["type"] for step in [state, *state.get("decoders", [])] if "type" in step}


def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, the others are put above 255 in their order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = sorted({*range(256)} - {*printable})
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_of()

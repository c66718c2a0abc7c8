"""Text that a client keeps for this server and cannot read: thoughts, and summaries of conversations.

A key of its own for each owner and each use is derived from the server's secret, so that what was sealed for one caller
is opened for nobody else. Servers that share the secret open each other's.
"""

from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Literal

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Use = Literal["reasoning", "compaction"]


class Seal:
    """Of one owner."""

    def __init__(self, secret: bytes, owner: str) -> None:
        self._secret = secret
        self._owner = owner

    def close(self, text: str, use: Use) -> str:
        return self._key(use).encrypt(text.encode()).decode()

    def closing(self, use: Use) -> Callable[[str], str]:
        return lambda text: self.close(text, use)

    def open(self, sealed: str, use: Use) -> str | None:
        """None for what was not sealed here, or not for this owner and use."""
        try:
            return self._key(use).decrypt(sealed.encode()).decode()
        except (InvalidToken, UnicodeError):
            return None

    def _key(self, use: Use) -> Fernet:
        info = f"parley|{use}|{self._owner}".encode()
        return Fernet(urlsafe_b64encode(HKDF(SHA256(), 32, salt=None, info=info).derive(self._secret)))

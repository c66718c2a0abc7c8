"""What is sealed for a client to keep."""

from services.chat.sealed import Seal

SEAL = Seal(b"a secret of the server", "me")


def test_opens_what_it_has_closed() -> None:
    sealed = SEAL.close("Hm, 42 · é", "reasoning")
    assert "42" not in sealed
    assert Seal(b"a secret of the server", "me").open(sealed, "reasoning") == "Hm, 42 · é"


def test_opens_nothing_else() -> None:
    sealed = SEAL.close("Hm", "reasoning")
    assert SEAL.open(sealed, "compaction") is None
    assert Seal(b"a secret of the server", "you").open(sealed, "reasoning") is None
    assert Seal(b"another secret", "me").open(sealed, "reasoning") is None
    for text in ("", "x", "é", "\ud800", sealed[:-1], sealed[::-1], "A" * 200):
        assert SEAL.open(text, "reasoning") is None

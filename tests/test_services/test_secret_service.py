"""The secret that servers share."""

import pytest

from database.session import Database
from services.errors import Unavailable
from services.secret_service import SecretService

pytestmark = pytest.mark.both_databases


async def test_servers_of_one_database_share_a_secret(database: Database) -> None:
    one, other, configured = (SecretService(database, secret) for secret in (None, None, "a secret of its own"))
    sealed = (await one.seal("me")).close("Hm", "reasoning")
    assert (await other.seal("me")).open(sealed, "reasoning") == "Hm"
    assert (await SecretService(database).seal("me")).open(sealed, "reasoning") == "Hm"
    assert (await configured.seal("me")).open(sealed, "reasoning") is None


async def test_what_it_has_read_at_the_start_holds_without_a_database(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = SecretService(database), SecretService(database)
    await early.start()

    def away(*_: object) -> None:
        raise OSError("away")

    with monkeypatch.context() as outage:
        outage.setattr(Database, "read", away)
        await late.start()
        with pytest.raises(Unavailable):
            await late.seal("me")
        sealed = (await early.seal("me")).close("Hm", "reasoning")
    assert (await late.seal("me")).open(sealed, "reasoning") == "Hm"

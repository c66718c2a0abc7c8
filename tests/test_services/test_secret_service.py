"""The secret that servers share."""

from database.session import Database
from services.secret_service import SecretService


async def test_servers_of_one_database_share_a_secret(database: Database) -> None:
    one, other, configured = (SecretService(database, secret) for secret in (None, None, "a secret of its own"))
    sealed = (await one.seal("me")).close("Hm", "reasoning")
    assert (await other.seal("me")).open(sealed, "reasoning") == "Hm"
    assert (await SecretService(database).seal("me")).open(sealed, "reasoning") == "Hm"
    assert (await configured.seal("me")).open(sealed, "reasoning") is None

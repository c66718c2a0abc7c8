"""The chat page."""

from tests.apps import NewSite


async def test_page_is_there_without_a_key(new_site: NewSite) -> None:
    site = await new_site(api_keys="secret")
    answer = await site.client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")

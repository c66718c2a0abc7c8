"""The chat page."""

import pytest

from tests.apps import NewSite, Site


async def test_page_is_there_without_a_key(new_site: NewSite) -> None:
    site = await new_site(api_keys="secret")
    answer = await site.client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc"])
async def test_the_policies_of_pages_are_headers(path: str, site: Site) -> None:
    policies = (await site.client.get(path)).headers.get_list("content-security-policy")
    assert "frame-ancestors 'none'" in policies
    (own,) = [policy for policy in policies if policy != "frame-ancestors 'none'"]
    assert {"default-src 'none'", "script-src 'self'", "connect-src 'self'"} <= set(own.split("; "))
    assert ("require-trusted-types-for 'script'" in own) == (path == "/")

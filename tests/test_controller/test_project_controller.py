"""Administration through the official client, on both databases."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError

from database.session import Database
from services.history.store import Store
from tests.apps import MODEL, NewSite, Site, official

ROOT = "root-key-of-the-settings"


@pytest.fixture
async def site(new_server: NewSite, database_url: str) -> Site:
    return await new_server(database={"url": database_url, "migrate": False}, admin_key=ROOT)


@pytest.fixture
async def root(site: Site) -> AsyncIterator[AsyncOpenAI]:
    async with official(site, ROOT, admin_api_key=ROOT) as client:
        yield client


def holder(root: AsyncOpenAI, key: str) -> AsyncOpenAI:
    return root.with_options(api_key=key, admin_api_key=key)


async def says(client: AsyncOpenAI) -> str | None:
    answer = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    return answer.choices[0].message.content


async def test_projects_are_made_listed_renamed_and_archived(root: AsyncOpenAI) -> None:
    projects = root.admin.organization.projects
    made = [await projects.create(name=name) for name in ("a", "b", "c")]
    assert [each.id async for each in projects.list(limit=2)] == [each.id for each in made]
    renamed = await projects.update(made[0].id, name="first")
    assert renamed.name == (await projects.retrieve(made[0].id)).name == "first"
    archived = await projects.archive(made[1].id)
    assert (archived.status, archived.object) == ("archived", "organization.project")
    assert archived.archived_at is not None
    assert [each.name async for each in projects.list()] == ["first", "c"]
    assert [each.name async for each in projects.list(include_archived=True)] == ["first", "b", "c"]
    with pytest.raises(BadRequestError, match="archived"):
        await projects.update(made[1].id, name="again")
    with pytest.raises(NotFoundError, match="No project"):
        await projects.retrieve("proj_none")


async def test_service_accounts_bring_keys(root: AsyncOpenAI) -> None:
    project = (await root.admin.organization.projects.create(name="team")).id
    accounts, keys = root.admin.organization.projects.service_accounts, root.admin.organization.projects.api_keys
    made = await accounts.create(project, name="bot", expires_in_seconds=3600)
    assert made.api_key is not None
    assert await says(holder(root, made.api_key.value)) == "Hello, world!"
    second = await accounts.api_keys.create(made.id, project_id=project, name="second")
    bare = await accounts.create(project, name="bare", create_service_account_only=True)
    assert bare.api_key is None
    assert [each.name async for each in accounts.list(project)] == ["bot", "bare"]
    listed = [each async for each in keys.list(project, limit=1)]
    assert [each.name for each in listed] == ["bot", "second"]
    assert listed[0].owner.service_account is not None
    assert listed[0].owner.service_account.id == made.id
    assert listed[0].redacted_value.endswith(made.api_key.value[-4:])
    assert made.api_key.value not in str(listed)
    assert listed[0].expires_at is not None
    assert 3500 < listed[0].expires_at - time.time() <= 3600
    assert (await accounts.update(made.id, project_id=project, name="robot")).name == "robot"
    assert (await accounts.retrieve(made.id, project_id=project)).name == "robot"
    assert (await keys.delete(second.id, project_id=project)).deleted
    assert [each.id async for each in keys.list(project)] == [made.api_key.id]
    assert (await accounts.delete(made.id, project_id=project)).deleted
    assert [each.id async for each in keys.list(project)] == []
    for key in (made.api_key.value, second.value):
        with pytest.raises(AuthenticationError):
            await says(holder(root, key))


async def test_an_archived_projects_keys_are_refused(root: AsyncOpenAI, site: Site) -> None:
    projects = root.admin.organization.projects
    project = await projects.create(name="team")
    made = await projects.service_accounts.create(project.id, name="bot")
    assert made.api_key is not None
    bearer = {"Authorization": f"Bearer {made.api_key.value}"}
    assert (await site.client.get("/v1/models", headers=bearer)).status_code == 200
    await projects.archive(project.id)
    assert (await site.client.get("/v1/models", headers=bearer)).status_code == 401


async def test_keys_are_retrieved_and_changed(root: AsyncOpenAI) -> None:
    projects = root.admin.organization.projects
    project = (await projects.create(name="team")).id
    limited: Any = {"models": [MODEL], "limits": {"rpm": 7}}
    made = await projects.service_accounts.create(project, name="bot", extra_body=limited)
    assert made.api_key is not None
    key = await projects.api_keys.retrieve(made.api_key.id, project_id=project)
    assert (key.expires_at, key.to_dict()["models"]) == (None, [MODEL])
    assert key.to_dict()["limits"] == {"rpm": 7, "tpm": None, "parallel": None, "budget": None}
    changed = await projects.api_keys.update(made.api_key.id, project_id=project, expires_in_seconds=60)
    assert changed.expires_at is not None
    assert changed.to_dict()["models"] == [MODEL]
    more: Any = {"name": "renamed", "limits": {"tpm": 9}, "lift": ["models", "expires_at"]}
    changed = await projects.api_keys.update(made.api_key.id, project_id=project, extra_body=more)
    assert (changed.name, changed.expires_at, changed.to_dict()["models"]) == ("renamed", None, None)
    assert changed.to_dict()["limits"] == {"rpm": 7, "tpm": 9, "parallel": None, "budget": None}
    more = {"lift": ["rpm"]}
    changed = await projects.api_keys.update(made.api_key.id, project_id=project, extra_body=more)
    assert changed.to_dict()["limits"] == {"rpm": None, "tpm": 9, "parallel": None, "budget": None}


async def test_rate_limits_of_a_project(root: AsyncOpenAI, site: Site) -> None:
    projects = root.admin.organization.projects
    project = (await projects.create(name="team")).id
    limits = projects.rate_limits
    listed = [each async for each in limits.list_rate_limits(project)]
    assert [(each.id, each.max_requests_per_1_minute) for each in listed] == [
        (f"rl-{name}", None) for name in (MODEL, "fake-embedding")
    ]
    await limits.update_rate_limit(listed[0].id, project_id=project, max_requests_per_1_minute=9)
    changed = await limits.update_rate_limit(listed[0].id, project_id=project, max_tokens_per_1_minute=1000)
    assert (changed.max_requests_per_1_minute, changed.max_tokens_per_1_minute) == (9, 1000)
    assert changed in [each async for each in limits.list_rate_limits(project, limit=1)]
    with pytest.raises(NotFoundError):
        await limits.update_rate_limit("rl-unknown", project_id=project, max_requests_per_1_minute=9)


async def test_objects_of_another_project_are_not_found(root: AsyncOpenAI) -> None:
    projects = root.admin.organization.projects
    ours, theirs = [(await projects.create(name=name)).id for name in "ab"]
    made = await projects.service_accounts.create(theirs, name="bot")
    assert made.api_key is not None
    for call in (
        projects.api_keys.retrieve(made.api_key.id, project_id=ours),
        projects.api_keys.delete(made.api_key.id, project_id=ours),
        projects.api_keys.update(made.api_key.id, project_id=ours, expires_in_seconds=5),
        projects.service_accounts.retrieve(made.id, project_id=ours),
        projects.service_accounts.delete(made.id, project_id=ours),
        projects.service_accounts.api_keys.create(made.id, project_id=ours),
    ):
        with pytest.raises(NotFoundError):
            await call
    assert await says(holder(root, made.api_key.value)) == "Hello, world!"


async def test_users_administer_nothing_and_every_change_is_logged(root: AsyncOpenAI, database: Database) -> None:
    projects = root.admin.organization.projects
    project = await projects.create(name="team")
    made = await projects.service_accounts.create(project.id, name="bot")
    assert made.api_key is not None
    user = holder(root, made.api_key.value)
    refusals = []
    for id in (project.id, "proj_none"):
        with pytest.raises(NotFoundError) as refused:
            await user.admin.organization.projects.archive(id)
        refusals.append(refused.value.response.text)
    assert refusals[0] == refusals[1]
    conversation = await user.conversations.create()
    await user.conversations.delete(conversation.id)
    await projects.archive(project.id)
    async with Store(database).reading() as repositories:
        events = await repositories.audit.events()
    admin = events[0].actor
    assert [(each.actor, each.action, each.owner) for each in events] == [
        (admin, "project.created", project.id),
        (admin, "service_account.created", project.id),
        (admin, "api_key.created", project.id),
        (made.api_key.id, "conversation.deleted", project.id),
        (admin, "project.archived", project.id),
    ]
    assert admin != made.api_key.id
    assert made.api_key.value not in str([each.details for each in events])

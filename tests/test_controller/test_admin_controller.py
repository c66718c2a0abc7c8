"""What an administrator sees of the models."""

import asyncio
import threading
from typing import ClassVar

from services.engine.loading import progress
from tests.apps import MODEL, NewSite, Site
from tests.fakes import FakeEngine

HI = {"messages": [{"content": "hi"}]}


class TestStatus:
    KEYS: ClassVar = {"api_keys": ["user-key-of-this-test"], "admin_key": "admin-key-of-this-test"}
    ADMIN: ClassVar = {"Authorization": "Bearer admin-key-of-this-test"}
    USER: ClassVar = {"Authorization": "Bearer user-key-of-this-test"}

    async def test_only_an_administrator_sees_it(self, new_site: NewSite, site: Site) -> None:
        guarded = await new_site(**self.KEYS)
        assert (await guarded.client.get("/admin/status", headers=self.USER)).status_code == 404
        assert (await site.client.get("/admin/status")).status_code == 404

    async def test_states_queues_and_caches(self, new_site: NewSite, engine: FakeEngine) -> None:
        site = await new_site(**self.KEYS)
        before = (await site.client.get("/admin/status", headers=self.ADMIN)).json()["data"]
        assert [(each["id"], each["kind"], each["status"]) for each in before] == [
            (MODEL, "chat", {"value": "unloaded"}),
            ("fake-embedding", "embedding", {"value": "unloaded"}),
        ]
        assert not before[0].keys() & {"device", "dtype", "max_model_len"}
        await site.client.post("/v1/chat/completions", json=HI, headers=self.USER)
        (chat, _) = (await site.client.get("/admin/status", headers=self.ADMIN)).json()["data"]
        assert (chat["status"], chat["device"]) == ({"value": "loaded"}, engine.device)
        assert (chat["max_model_len"], chat["running"], chat["waiting"]) == (engine.max_length, 0, 0)

    async def test_progress_of_a_load(self, new_site: NewSite, engine: FakeEngine) -> None:
        reported, gate = threading.Event(), threading.Event()

        def build(kind: str, /, **options: object) -> FakeEngine:
            for _ in progress.counted("reading", "abcd"):
                reported.set()
                gate.wait()
            return engine

        site = await new_site(**self.KEYS, build=build, model={"name": MODEL, "preload": True})
        await asyncio.to_thread(reported.wait)
        expected = {"value": "loading", "progress": {"stage": "reading", "done": 0, "total": 4}}
        assert (await site.client.get("/admin/status", headers=self.ADMIN)).json()["data"][0]["status"] == expected
        assert (await site.client.get(f"/v1/models/{MODEL}", headers=self.USER)).json()["status"] == expected
        gate.set()
        await site.services.models.get_model()
        found = (await site.client.get(f"/v1/models/{MODEL}", headers=self.USER)).json()
        assert found["status"] == {"value": "loaded"}

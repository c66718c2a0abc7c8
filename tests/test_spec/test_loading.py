"""Specs that cannot be served are refused at the start, with the reason."""

import re
from collections.abc import Callable

import pytest
from fastapi import FastAPI

from app.spec import Spec
from tests.apps import NewSite

NewApp = Callable[..., FastAPI]


async def nothing() -> dict[str, str]:
    return {}


def adding(path: str, *methods: str) -> type[Spec]:
    def __init__(self: Spec) -> None:
        Spec.__init__(self)
        self.add_endpoint(path, nothing, methods)

    return type("Adding", (Spec,), {"__init__": __init__})


Chat = adding("/v1/chat/completions", "POST")
ChatPut = adding("/v1/chat/completions", "PUT")
AnyModel = adding("/v1/models/mine", "GET")
File = adding("/static/mine.js", "GET")
Docs = adding("/docs", "GET")
Predict = adding("/predict", "POST")
Health = adding("/health/live", "POST")
Everything = adding("/{path:path}", "POST")
Relative = adding("mine", "POST")
NoMethod = adding("/mine")
OddMethod = adding("/mine", "SHOUT")
Mine = adding("/mine/{one}", "POST", "PUT")
MineToo = adding("/mine/{other}", "PUT")
MineGet = adding("/mine/{one}", "GET")
AnInstance = MineGet()
NoSpec = dict


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["Chat"], "Adding adds POST /v1/chat/completions, which Parley answers already"),
        (["AnyModel"], "Adding adds GET /v1/models/mine, which Parley answers already"),
        (["File"], "/static/mine.js, which is open to callers without a key"),
        (["Health"], "/health/live, which is open to callers without a key"),
        (["Everything"], "/{path:path}, which is open to callers without a key"),
        (["Docs"], "/docs, which is open to callers without a key"),
        (["Predict"], "/predict, which the spec app.spec.predict:PredictSpec answers already"),
        (["Relative"], "adds 'mine': a path begins with a slash"),
        (["NoMethod"], "with the methods []"),
        (["OddMethod"], "with the methods ['SHOUT']"),
        (["Mine", "MineToo"], f"adds PUT /mine/{{other}}, which the spec {__name__}:Adding answers already"),
        (["Mine", "Mine"], "answers already"),
        (["NoSpec"], "is no app.spec.Spec"),
        (["Missing"], f"'{__name__}:Missing' cannot be imported"),
    ],
    ids=str,
)
def test_what_cannot_be_served(new_app: NewApp, specs: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        new_app(specs=[f"{__name__}:{each}" for each in specs])


@pytest.mark.parametrize("name", ["no.such.module:Spec", "app.spec.nothing:Spec", "unknown", "a.module", ":Spec", "m:"])
def test_bad_names(new_app: NewApp, name: str) -> None:
    with pytest.raises(ValueError, match=f"PARLEY_SPECS: '{name}'"):
        new_app(specs=[name])


async def test_another_method_of_a_known_path_is_no_clash(new_site: NewSite) -> None:
    site = await new_site(specs=[f"{__name__}:{each}" for each in ("ChatPut", "Mine", "AnInstance")])
    assert (await site.client.put("/v1/chat/completions")).json() == {}
    assert (await site.client.get("/mine/7")).json() == {}
    assert (await site.client.put("/mine/7")).json() == {}


async def test_every_endpoint_is_behind_the_gate(new_site: NewSite) -> None:
    site = await new_site(specs=[f"{__name__}:Mine"], api_keys=["key"])
    assert (await site.client.post("/mine/7")).status_code == 401
    assert (await site.client.post("/mine/7", headers={"x-api-key": "key"})).status_code == 200

"""The soak test and the flood of streams notice what they look for, on a served app."""

from dataclasses import replace

import pytest
from aiohttp import ClientSession

from tests.apps import Site
from tools.faults import traffic
from tools.faults.growth import growths
from tools.faults.resources import Sample
from tools.faults.streams import OpenStreams, StreamsReport, run_stream
from tools.faults.traffic_client import Client, Wrong

CALM = Sample(0, 0, 500.0, 20, 10, 4.0, 0)
# kinds that need more than one fake engine can do
REAL = {"structured_chat", "vectors", "tokens", "refused", "overview"}


def samples(leak: float) -> list[Sample]:
    """Noise of 3 MiB, and a leak of so many MiB in 1,000 requests."""
    return [
        replace(CALM, seconds=n, requests=n * 50, rss_mib=500 + 3 * (n % 2) + leak * n * 50 / 1000) for n in range(240)
    ]


def test_growth_is_told_from_noise() -> None:
    assert [each.name for each in growths(samples(leak=0)) if each.is_too_much] == []
    assert [each.name for each in growths(samples(leak=4)) if each.is_too_much] == ["rss_mib"]


def test_caches_that_fill_at_the_beginning_are_no_growth() -> None:
    filling = [replace(each, rss_mib=min(each.rss_mib + n * 5, 900)) for n, each in enumerate(samples(leak=0))]
    assert [each for each in growths(filling) if each.is_too_much] == []


async def test_each_kind_of_traffic_is_answered(server: Site) -> None:
    async with ClientSession(str(server.client.base_url)) as http:
        for kind in traffic.KINDS:
            if kind.__name__ not in REAL:
                await kind(Client(http))


async def test_wrong_answers_are_noticed(server: Site) -> None:
    async with ClientSession(str(server.client.base_url)) as http:
        with pytest.raises(Wrong, match="404"):
            await Client(http).get("/v1/responses/resp_none")
        with pytest.raises(Wrong, match="400"):
            await Client(http).events("/v1/chat/completions", {"messages": [], "stream": True})


async def test_streams_are_counted(server: Site) -> None:
    report = StreamsReport(2)
    async with ClientSession(str(server.client.base_url)) as http:
        await run_stream(http, 8, report, OpenStreams())
    async with ClientSession("http://127.0.0.1:1") as http:
        await run_stream(http, 8, report, OpenStreams())
    assert (report.answered, report.refused, report.num_broken, report.hung) == (1, 0, 1, 0)
    assert report.has_failed(100)

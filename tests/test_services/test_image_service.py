"""How many images are read, and what is done with what cannot be."""

import asyncio
import gc
from collections.abc import Sequence

import httpx2
import numpy as np
import pytest

from services.chat.request.contents import Illustration
from services.chat.request.images import ImageRef, ReadImages
from services.engine.base import Image, Picture
from services.errors import InvalidRequest, Overloaded, PromptTooLong
from services.fetch_service import Fetcher
from services.image_service import ImageService
from tests.fakes import FakeEngine
from tests.pictures import FakeReader, data_url, encoded


class Hungry(FakeReader):
    """A hundred bytes for each picture; none that is wider than high."""

    def read(self, picture: Picture) -> Image:
        if picture.width > picture.height:
            raise ValueError("absolute aspect ratio must be smaller than 1")
        return Image(b"", "X", 1, {"pixel_values": np.zeros(100, np.uint8)})


def engine(reader: FakeReader | None = None, max_length: int = 1000) -> FakeEngine:
    engine = FakeEngine(max_length=max_length)
    engine.images = reader or FakeReader()
    return engine


def refs(*urls: str) -> list[ImageRef]:
    return [ImageRef(url, "auto", f"param.{index}") for index, url in enumerate(urls)]


URL = data_url(encoded(size=(2, 3)))


async def read(
    service: ImageService, urls: Sequence[str] = (URL,), of: FakeEngine | None = None, owner: str = "alpha"
) -> Illustration:
    illustration = await service.illustration(refs(*urls), of or engine(), owner)
    assert illustration
    return illustration


async def test_no_images_no_illustration() -> None:
    assert await ImageService().illustration([], FakeEngine(), "alpha") is None


async def test_they_are_in_order() -> None:
    illustration = await read(ImageService(), [URL, data_url(encoded(size=(1, 2)))])
    assert [image.num_tokens for image in illustration.images] == [6, 2]


async def test_what_the_model_does_not_take_is_the_requests_fault() -> None:
    with pytest.raises(InvalidRequest) as refused:
        await read(ImageService(), [URL, data_url(encoded(size=(3, 2)))], engine(Hungry()))
    assert refused.value.param == "param.1"
    assert "aspect" not in refused.value.message


async def test_no_more_are_read_than_the_model_has_room_for() -> None:
    of = engine(max_length=12)
    with pytest.raises(PromptTooLong) as refused:
        await read(ImageService(), [URL] * 9, of)
    assert refused.value.param == "param.1"
    assert isinstance(of.images, FakeReader)
    assert len(of.images.pictures) == 2


async def is_full(service: ImageService, of: FakeEngine, owner: str = "alpha") -> bool:
    try:  # and not `pytest.raises`, which keeps what its caller had
        await read(service, [URL], of, owner)
    except Overloaded:
        return True
    return False


async def test_memory_is_given_back_with_the_image() -> None:
    service, of = ImageService(max_held_bytes=150), engine(Hungry())
    first = await read(service, [URL], of)
    second = await read(service, [URL] * 3, of)  # one's own are counted for the others
    assert await is_full(service, of)
    del second
    async with asyncio.timeout(20):  # a thread may be about to forget what it has done
        while await is_full(service, of):
            await asyncio.to_thread(gc.collect)
    assert first


async def test_one_owner_does_not_take_the_room_of_the_others() -> None:
    """Others come in up to an equal part; beyond twice the room nobody does who has any."""
    service, of = ImageService(max_held_bytes=450), engine(Hungry())
    kept = [await read(service, [URL], of, "alpha") for _ in range(5)]
    assert await is_full(service, of, "alpha")

    kept += [await read(service, [URL], of, owner) for owner in ("beta", "gamma", "gamma")]
    assert await is_full(service, of, "gamma")
    kept.append(await read(service, [URL], of, "delta"))
    assert await is_full(service, of, "beta")  # though it has less than its part
    kept.append(await read(service, [URL], of, "epsilon"))
    assert len(kept) == 10


async def test_what_one_request_has_read_is_not_read_again() -> None:
    service, of, images = ImageService(), engine(), ReadImages()
    first = await service.illustration(refs(URL, URL), of, "alpha", images)
    again = await service.illustration(refs(URL, URL), of, "alpha", images)
    assert isinstance(of.images, FakeReader)
    assert len(of.images.pictures) == 2
    assert first
    assert again
    assert first.images == again.images


async def test_a_request_that_waits_for_room_keeps_none() -> None:
    """Two that keep some and wait for more could wait for each other."""
    service, of, images = ImageService(max_held_bytes=150), engine(Hungry()), ReadImages()
    kept = [await read(service, [URL], of, "alpha")]
    await service.illustration(refs(URL), of, "alpha", images)
    kept.append(await read(service, [URL], of, "beta"))
    assert len(images) == 1
    with pytest.raises(Overloaded):
        await service.illustration(refs(URL, URL), of, "alpha", images)
    assert (images, len(kept)) == ({}, 2)


async def test_one_owner_does_not_take_all_turns_to_decode() -> None:
    class Ordering(FakeReader):
        def read(self, picture: Picture) -> Image:
            order.append(picture.width)
            return super().read(picture)

    order: list[int] = []
    service, of = ImageService(), engine(Ordering())
    flood = [asyncio.create_task(read(service, [data_url(encoded(size=(1, 3)))], of)) for _ in range(40)]
    await asyncio.sleep(0)
    await read(service, [URL], of, "beta")
    await asyncio.gather(*flood)

    assert (len(order), order.index(2) < 10) == (41, True)


async def test_one_that_is_fetched() -> None:
    class Server(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(200, stream=httpx2.ByteStream(encoded(size=(2, 3))))

    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.216.34"]

    fetcher = Fetcher(["*"], max_bytes=1000, timeout_s=20, resolve=resolve, transport=Server())
    illustration = await read(ImageService(fetcher=fetcher), ["https://images.example/a.png"])
    assert [image.num_tokens for image in illustration.images] == [6]


async def test_few_are_decoded_at_once() -> None:
    class Counting(FakeReader):
        now = most = 0

        def read(self, picture: Picture) -> Image:
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                return super().read(picture)
            finally:
                self.now -= 1

    reader = Counting()
    service, of = ImageService(), engine(reader)
    await asyncio.gather(*(read(service, [URL] * 2, of) for _ in range(8)))
    assert len(reader.pictures) == 16
    assert reader.most <= 2

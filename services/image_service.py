"""Reads the images of a request for its model."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from services.chat.request import images
from services.chat.request.contents import Illustration
from services.chat.request.images import ImageKey, ImageRef, ReadImages
from services.engine.base import Engine, Image, ImageReader, UnreadablePicture
from services.engine.scheduling.fair_slots import FairSlots
from services.errors import InvalidRequest, Overloaded, PromptTooLong, UnsupportedParameter
from services.fetch_service import Fetcher

logger = logging.getLogger(__name__)

MAX_CONCURRENT = 2  # decoded images are large
MAX_OVERCOMMIT = 2  # times `max_held_bytes`, for all owners together


class ImageService:
    """`fetcher`: None: images by data URL only. `max_held_bytes`: memory of all images of running requests. One owner
    may fill it; other owners are then still admitted up to an equal share."""

    def __init__(
        self,
        *,
        max_images: int = 16,
        max_bytes: int = 10 * 1024 * 1024,
        max_pixels: int = 32 * 1024 * 1024,
        max_held_bytes: int = 1024 * 1024 * 1024,
        fetcher: Fetcher | None = None,
    ) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._max_held_bytes = max_held_bytes
        self._fetcher = fetcher
        self._turns = FairSlots(MAX_CONCURRENT, MAX_CONCURRENT)
        self._held: WeakKeyDictionary[Image, str] = WeakKeyDictionary()  # image -> owner

    async def illustration(
        self, refs: Sequence[ImageRef], engine: Engine, owner: str, read: ReadImages | None = None
    ) -> Illustration | None:
        """Raises for the first wrong image, by its parameter. `read`: is not read again, and gets what is."""
        if not refs:
            return None
        reader = engine.images
        if reader is None:
            raise UnsupportedParameter(refs[0].param, "is an image, and this model takes text only")
        if len(refs) > self._max_images:
            raise InvalidRequest(f"There are more than {self._max_images} images", param=refs[self._max_images].param)
        read = {} if read is None else read
        found: list[Image] = []
        for ref, key in images.keyed(refs, reader):
            if key not in read:
                await self._read(ref, key, read, owner)
            found.append(read[key])
            tokens = sum(image.num_tokens for image in found)
            if tokens >= engine.max_length:  # before the next image takes memory
                raise PromptTooLong(tokens, engine.max_length, param=ref.param)
        return Illustration(found, reader)

    async def _read(self, ref: ImageRef, key: ImageKey, read: ReadImages, owner: str) -> None:
        fetched = None if ref.url[:5].lower() == "data:" else await self._fetch(ref)
        async with self._turns.slot(owner):
            self._check_room(read, owner)
            # not as the thread's result: its future is in a reference cycle and would keep the image alive
            await asyncio.to_thread(lambda: read.update({key: self._open(fetched, ref, key[0])}))
        self._held[read[key]] = owner

    def _check_room(self, read: ReadImages, owner: str) -> None:
        own = read.values()
        held: Counter[str] = Counter()
        for image, holder in self._held.items():
            if image not in own:  # not those of this request
                held[holder] += image.num_bytes
        share = self._max_held_bytes // len({owner, *held})
        is_over = held.total() >= self._max_held_bytes and held[owner] >= share
        if is_over or (held[owner] and held.total() >= MAX_OVERCOMMIT * self._max_held_bytes):
            read.clear()  # requests that wait for room hold none, or all could wait for each other
            raise Overloaded("Too many images are waiting to be answered")

    async def _fetch(self, ref: ImageRef) -> bytes:
        if self._fetcher is None:
            raise InvalidRequest(
                "This server fetches no images: send a data URL (data:image/png;base64,...)", param=ref.param
            )
        return await self._fetcher.get(ref.url, ref.param)

    def _open(self, fetched: bytes | None, ref: ImageRef, reader: ImageReader) -> Image:
        data = images.from_data_url(ref, self._max_bytes) if fetched is None else fetched
        try:
            return reader.read(images.picture(data, ref, self._max_pixels))
        except UnreadablePicture as error:
            logger.info("an image could not be read: %s", error)
            raise images.unreadable(ref) from None
        except ValueError as error:  # a processor's words: no wider than so, no narrower than so
            logger.info("a picture is not to the model's liking: %s", error)
            raise InvalidRequest("The model cannot take an image of this shape", param=ref.param) from error

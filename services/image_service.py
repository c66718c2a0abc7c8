"""Images of a request, read for the model that answers it."""

import asyncio
from collections.abc import Sequence

from services.chat import images
from services.chat.contents import Illustration
from services.chat.images import ImageRef
from services.engine.base import Image, ImageReader
from services.errors import InvalidRequest, UnsupportedParameter
from services.fetch_service import Fetcher

AT_ONCE = 2  # decoded pictures are large


class ImageService:
    """`fetcher`: None: images come in the request itself only."""

    def __init__(
        self,
        *,
        max_images: int = 16,
        max_bytes: int = 10 * 1024 * 1024,
        max_pixels: int = 32 * 1024 * 1024,
        fetcher: Fetcher | None = None,
    ) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._fetcher = fetcher
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def illustration(self, refs: Sequence[ImageRef], reader: ImageReader | None) -> Illustration | None:
        """Refuses the first one at fault by its name."""
        if not refs:
            return None
        if reader is None:
            raise UnsupportedParameter(refs[0].param, "is an image, and this model takes text only")
        if len(refs) > self._max_images:
            raise InvalidRequest(f"There are more than {self._max_images} images", param=refs[self._max_images].param)
        return Illustration([await self._read(ref, reader) for ref in refs], reader)

    async def _read(self, ref: ImageRef, reader: ImageReader) -> Image:
        fetched = None if ref.url[:5].lower() == "data:" else await self._fetch(ref)
        async with self._turns:
            return await asyncio.to_thread(self._open, fetched, ref, reader)

    async def _fetch(self, ref: ImageRef) -> bytes:
        if self._fetcher is None:
            raise InvalidRequest(
                "This server fetches no images: send a data URL (data:image/png;base64,...)", param=ref.param
            )
        return await self._fetcher.get(ref.url, ref.param)

    def _open(self, fetched: bytes | None, ref: ImageRef, reader: ImageReader) -> Image:
        data = images.from_data_url(ref, self._max_bytes) if fetched is None else fetched
        return reader.read(images.decode(data, ref, self._max_pixels))

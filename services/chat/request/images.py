"""Images of a request: where they are, and what is known of them without decoding."""

import base64
import binascii
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image as Pillow

from services.engine.base import Image, ImageReader, Message, Picture
from services.errors import InvalidRequest

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
LOW = 512  # pixels of the longer side that `detail: low` asks for
DATA_URL = re.compile(r"data:image/[a-z.+-]{1,32}(;[a-z0-9=._-]{1,64}){0,8};base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image part; `param` is how an error names it."""

    url: str
    detail: str
    param: str


# By reader, URL, detail, and which of the same: those that one request has read, whose prompt may be prepared again.
ImageKey = tuple[ImageReader, str, str, int]
ReadImages = dict[ImageKey, Image]


def refs(messages: Sequence[Message], num_own: int) -> list[ImageRef]:
    """In order. The last `num_own` messages are the request's own, those before them are its conversation's."""
    return list(_refs(messages, len(messages) - num_own))


def _refs(messages: Sequence[Message], num_before: int) -> Iterator[ImageRef]:
    for place, message in enumerate(messages):
        content = message.get("content")
        for index, part in enumerate(content if isinstance(content, list) else []):
            if part["type"] == "image_url":
                own = f"messages.{place - num_before}.content.{index}.image_url.url"
                image = part["image_url"]
                yield ImageRef(
                    image["url"], image.get("detail", "auto"), own if place >= num_before else "conversation"
                )


def keyed(refs: Iterable[ImageRef], reader: ImageReader) -> Iterator[tuple[ImageRef, ImageKey]]:
    same = Counter[tuple[str, str]]()
    for ref in refs:
        yield ref, (reader, ref.url, ref.detail, same[ref.url, ref.detail])
        same[ref.url, ref.detail] += 1


def from_data_url(ref: ImageRef, max_bytes: int) -> bytes:
    begin = DATA_URL.match(ref.url)
    if begin is None:
        raise InvalidRequest("A data URL of an image begins with data:image/png;base64, or the like", param=ref.param)
    if len(ref.url) - begin.end() > max_bytes // 3 * 4 + 4:
        raise too_large(ref, max_bytes)
    try:
        return base64.b64decode(ref.url[begin.end() :], validate=True)
    except (binascii.Error, ValueError):  # the latter for what is not ASCII
        raise InvalidRequest("The image's data is not valid base64", param=ref.param) from None


def too_large(ref: ImageRef, max_bytes: int) -> InvalidRequest:
    return InvalidRequest(f"The image has more than {max_bytes} bytes", param=ref.param)


def picture(data: bytes, ref: ImageRef, max_pixels: int) -> Picture:
    """Its first frame's size is checked before any pixel takes memory; what follows the head is not looked at."""
    try:
        with Pillow.open(BytesIO(data), formats=FORMATS) as file:
            size = (file.width, file.height)
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
        raise _too_many(ref, max_pixels) from None
    except Exception as error:  # whatever a decoder may throw at what is no image
        logger.info("an image could not be read: %s", type(error).__name__)
        raise unreadable(ref) from None
    if size[0] * size[1] > max_pixels:
        raise _too_many(ref, max_pixels)
    return Picture(data, *size, max_side=LOW if ref.detail == "low" else None)


def _too_many(ref: ImageRef, max_pixels: int) -> InvalidRequest:
    return InvalidRequest(f"The image has more than {max_pixels} pixels", param=ref.param)


def unreadable(ref: ImageRef) -> InvalidRequest:
    return InvalidRequest("The image is not a readable PNG, JPEG, WebP or GIF", param=ref.param)

"""Small image files, and a fake image reader."""

import base64
import hashlib
from io import BytesIO
from typing import Any

from PIL import Image as Pillow

from services.engine.base import Image, Picture


def encoded(kind: str = "PNG", size: tuple[int, int] = (3, 2), colour: str = "red", **options: Any) -> bytes:
    out = BytesIO()
    Pillow.new("RGB", size, colour).save(out, kind, **options)
    return out.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def part(url: str, **fields: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


RED = part(data_url(encoded()))


class FakeReader:
    """An image becomes an X for each pixel, in brackets."""

    placeholder = "@"
    token = ord("X")

    def __init__(self) -> None:
        self.pictures: list[Picture] = []

    def read(self, picture: Picture) -> Image:
        self.pictures.append(picture)
        size = picture.width * picture.height
        return Image(hashlib.sha256(picture.data).digest(), f"[{'X' * size}]", size, {})

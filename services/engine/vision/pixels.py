"""Encoded pictures -> pixels."""

from io import BytesIO

from PIL import Image as Pillow
from PIL import ImageOps

from services.engine.base import Picture, UnreadablePicture


def pixels(picture: Picture) -> Pillow.Image:
    """The first frame, upright, in RGB and no larger than it is to be."""
    try:
        with Pillow.open(BytesIO(picture.data)) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except Exception as error:  # whatever a decoder may throw at what is no image
        raise UnreadablePicture(type(error).__name__) from None
    if picture.max_side is not None:
        image.thumbnail((picture.max_side, picture.max_side))
    return image


def encoded(image: Pillow.Image) -> Picture:
    """For pictures of our own: the same pixels come back."""
    out = BytesIO()
    image.save(out, "PNG")
    return Picture(out.getvalue(), image.width, image.height)

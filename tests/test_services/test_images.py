"""What of an image part becomes a picture, and what is refused."""

import base64
import warnings
from contextlib import suppress
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from services.chat.request.images import ImageRef, from_data_url, picture, refs
from services.engine.base import UnreadablePicture
from services.engine.vision.pixels import pixels
from services.errors import InvalidRequest
from tests.pictures import RED, data_url, encoded, part

PARAM = "messages.0.content.1.image_url.url"
PIXELS = 10_000


def ref(url: str = "", detail: str = "auto") -> ImageRef:
    return ImageRef(url, detail, PARAM)


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as refused:
        picture(data, ref(), PIXELS)
    assert refused.value.param == PARAM
    return refused.value.message


class TestPlaces:
    def test_each_is_named_as_the_request_names_it(self) -> None:
        text = {"type": "text", "text": "and"}
        before = {"role": "user", "content": [RED]}
        own = [{"role": "user", "content": "hi"}, {"role": "user", "content": [text, RED, part("u", detail="low")]}]

        found = refs([{"role": "system", "content": "be brief"}, before, *own], num_own=2)

        assert [each.param for each in found] == [
            "conversation",
            "messages.1.content.1.image_url.url",
            "messages.1.content.2.image_url.url",
        ]
        assert [each.detail for each in found] == ["auto", "auto", "low"]


class TestDataUrl:
    @pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:image/svg+xml;charset=utf-8;BASE64,"])
    def test_its_bytes(self, head: str) -> None:
        assert from_data_url(ref(head + base64.b64encode(b"bytes").decode()), 100) == b"bytes"

    @pytest.mark.parametrize(
        "url",
        [
            "data:,hello",
            "data:text/html;base64,aGk=",
            "data:image/png,aGk=",
            "data:image/png" + ";a" * 100_000,
            "data:image/png;base64,a",
            "data:image/png;base64,aGk=\n",
            "data:image/png;base64,é",
        ],
    )
    def test_others_are_refused(self, url: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            from_data_url(ref(url), 100)
        assert refused.value.param == PARAM

    def test_the_largest(self) -> None:
        assert len(from_data_url(ref(data_url(bytes(99))), 99)) == 99
        with pytest.raises(InvalidRequest, match="more than 99 bytes"):
            from_data_url(ref(data_url(bytes(103))), 99)


def decoded(data: bytes, detail: str = "auto", max_pixels: int = PIXELS) -> Pillow.Image:
    return pixels(picture(data, ref(detail=detail), max_pixels))


class TestDecode:
    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "JPEG"])
    def test_formats(self, kind: str) -> None:
        image = decoded(encoded(kind, (20, 10), "red"))
        assert (image.size, len(image.tobytes())) == ((20, 10), 600)
        assert image.tobytes()[0] > 240 > 10 > image.tobytes()[1]

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "I;16"])
    def test_modes(self, mode: str) -> None:
        out = BytesIO()
        Pillow.new(mode, (2, 2)).save(out, "PNG")
        assert len(decoded(out.getvalue()).tobytes()) == 12

    def test_the_first_frame(self) -> None:
        out = BytesIO()
        frames = [Pillow.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
        frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
        assert decoded(out.getvalue()).tobytes()[:3] == bytes([255, 0, 0])

    def test_a_photograph_stands_upright(self) -> None:
        exif = Pillow.Exif()
        exif[0x0112] = 6
        assert decoded(encoded("JPEG", (20, 10), exif=exif)).width == 10

    def test_low_detail_is_small(self) -> None:
        data = encoded(size=(1024, 512))
        assert decoded(data, "low", 10**6).width == 512
        assert decoded(data, "high", 10**6).width == 1024

    def test_more_pixels_than_allowed(self) -> None:
        assert decoded(encoded(size=(100, 100))).width == 100
        assert "pixels" in refusal(encoded(size=(101, 100)))

    @pytest.mark.parametrize("action", ["error", "ignore"])
    def test_a_decompression_bomb(self, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
        monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 100)
        with warnings.catch_warnings():
            warnings.simplefilter(action)  # type: ignore[arg-type]
            assert "pixels" in refusal(encoded(size=(150, 100)))
            assert "pixels" in refusal(encoded(size=(1000, 1000)))

    @pytest.mark.parametrize("data", [b"", b"hello", encoded("BMP"), encoded("TIFF"), b"<svg/>"])
    def test_no_image(self, data: bytes) -> None:
        assert "readable" in refusal(data)

    def test_no_more_than_a_head(self) -> None:
        with pytest.raises(UnreadablePicture):
            decoded(encoded("JPEG", (99, 99))[:-99])

    @given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]))
    @settings(max_examples=60, deadline=None)
    def test_damaged_ones_are_refused_or_read(self, data: st.DataObject, kind: str) -> None:
        image = bytearray(encoded(kind, (16, 16)))
        for _ in range(data.draw(st.integers(1, 5))):
            image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
        with warnings.catch_warnings(), suppress(InvalidRequest, UnreadablePicture):
            warnings.simplefilter("ignore")
            assert decoded(bytes(image)).tobytes()

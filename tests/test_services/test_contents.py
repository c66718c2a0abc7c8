"""Contents in the form that a chat template takes, and images in the places it leaves."""

import pytest

from services.chat.request.contents import Form, Illustration, form, kept, shaped, text
from services.engine.base import Image
from services.errors import InvalidRequest
from tests.fakes import FakeTokenizer
from tests.pictures import RED, FakeReader

PARTS = """{% for m in messages %}<{{ m.role }}>{% for part in m.content %}\
{% if part.type == "image" %}@{% elif part.type == "text" %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"""
BOTH = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}" + PARTS + "{% endif %}{% endfor %}"
)
HELLO = {"type": "text", "text": "hello"}
TEXT = {"role": "user", "content": "hi"}
ILLUSTRATED = {"role": "user", "content": [HELLO, RED]}


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (None, Form(strings=True, parts=False)),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", Form(strings=True, parts=False)),
        ("{% for m in messages %}{{ 'x' + m.content }}{% endfor %}", Form(strings=True, parts=False)),
        (PARTS, Form(strings=False, parts=True)),
        (BOTH, Form(strings=True, parts=True)),
        ("{{ raise_exception('nothing') }}", Form(strings=True, parts=False)),
    ],
)
def test_the_form_is_found_by_trying(template: str | None, found: Form) -> None:
    assert form(FakeTokenizer(template)) == found


def test_each_form() -> None:
    refused = {"role": "user", "content": [{"type": "refusal", "refusal": "no"}, RED]}
    messages = [TEXT, ILLUSTRATED, refused]
    no = {"type": "text", "text": "no"}

    def contents(strings: bool, parts: bool) -> list[object]:
        return [each["content"] for each in shaped(messages, Form(strings, parts), "@")]

    assert contents(strings=True, parts=False) == ["hi", "hello@\n", "no@\n"]
    assert contents(strings=True, parts=True) == ["hi", [HELLO, {"type": "image"}], [no, {"type": "image"}]]
    assert contents(strings=False, parts=True)[:2] == [[{"type": "text", "text": "hi"}], [HELLO, {"type": "image"}]]


def test_a_message_without_content_stays_without() -> None:
    assert shaped([{"role": "assistant", "content": None}], Form(False, True))[0]["content"] is None


def test_parts_are_kept_for_images_only() -> None:
    assert kept([HELLO, HELLO]) == text([HELLO, RED, HELLO]) == "hellohello"
    assert kept([HELLO, RED]) == [HELLO, RED]
    assert kept(None) == ""


def image(num_tokens: int) -> Image:
    return Image(b"", f"[{'X' * num_tokens}]", num_tokens, {})


def test_images_fill_their_places() -> None:
    one, other = image(2), image(3)
    illustration = Illustration([one, other], FakeReader())

    filled = illustration.fill("a@b@")
    placed = illustration.placed(list(filled.encode()))

    assert filled == "a[XX]b[XXX]"
    assert [(each.image, each.positions) for each in placed] == [(one, (2, 3)), (other, (7, 8, 9))]


@pytest.mark.parametrize("written", ["@ and @", "nothing"])
def test_as_many_places_as_images(written: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Illustration([image(1)], FakeReader()).fill(written)
    assert refused.value.param == "messages"


def test_a_text_that_becomes_the_token_of_an_image() -> None:
    with pytest.raises(InvalidRequest) as refused:
        Illustration([image(2)], FakeReader()).placed(list(b"[XX] and X"))
    assert refused.value.param == "messages"

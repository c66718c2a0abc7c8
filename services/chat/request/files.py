"""Files of a request: where they are, and what stands for each in the prompt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.chat.request import contents

ContentPart = Mapping[str, Any]
Content = str | Sequence[ContentPart] | None
Place = tuple[int, int]  # of the message, and of the part in it
Source = tuple[str, str]  # `file_id`, `file_data`, `file_url`, or `image_id`; and its value
ReadFiles = dict[Source, str]  # those that one request has read, whose prompt may be prepared again


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file part, or an image by its file's id; `param` is how an error names it."""

    part: ContentPart
    source: Source
    place: Place
    param: str

    @property
    def filename(self) -> str | None:
        name: str | None = self.part[self.part["type"]].get("filename")
        return name

    def replacement(self, read: str) -> ContentPart:
        """`read`: a file with its name, or an image's data URL."""
        if self.source[0] != "image_id":
            return {"type": "text", "text": read}
        image = {name: value for name, value in self.part["image_url"].items() if name != "file_id"}
        return {"type": "image_url", "image_url": {**image, "url": read}}


def refs(found: Sequence[Content], num_own: int) -> list[FileRef]:
    """In order. The last `num_own` contents are those of the request itself, those before them its conversation's."""
    return list(_refs(found, len(found) - num_own))


def _refs(found: Sequence[Content], num_before: int) -> Iterator[FileRef]:
    for place, content in enumerate(found):
        for index, part in enumerate(content if isinstance(content, list) else ()):
            if (source := _source(part)) is not None:
                own = f"messages.{place - num_before}.content.{index}.{part['type']}.{source[0]}"
                param = own.replace("image_id", "file_id") if place >= num_before else "conversation"
                yield FileRef(part, source, (place, index), param)


def _source(part: ContentPart) -> Source | None:
    match part["type"]:
        case "file":
            return next((name, value) for name, value in part["file"].items() if name != "filename")
        case "image_url" if "file_id" in part["image_url"]:
            return "image_id", part["image_url"]["file_id"]
    return None


def replaced(found: Sequence[Content], parts: Mapping[Place, ContentPart]) -> dict[int, Content]:
    """The contents that change, by their messages' places."""
    return {place: _replaced(found[place], place, parts) for place in {place for place, _ in parts}}


def _replaced(content: Content, place: int, parts: Mapping[Place, ContentPart]) -> Content:
    assert isinstance(content, list)  # only those have parts
    return contents.kept([parts.get((place, index), part) for index, part in enumerate(content)])


def as_text(filename: str, text: str) -> str:
    return f"File: {' '.join(filename.split())}\n\n{text.strip()}\n\n"

"""What of a request was prepared already: one that is truncated or compacted is counted before it is answered."""

from collections.abc import Callable
from dataclasses import dataclass, field

from services.chat.request.files import ReadFiles
from services.chat.request.images import ReadImages
from services.chat.request.prompt import Prompt


@dataclass(slots=True)
class PreparationCache:
    """Of one request, which is prepared by one task at a time."""

    images: ReadImages = field(default_factory=dict)
    files: ReadFiles = field(default_factory=dict)
    _source: object = None  # of the last prompt
    _prompt: Prompt | None = None

    def prompt(self, source: object, encode: Callable[[], Prompt]) -> Prompt:
        """The last prompt if it was made of an equal source."""
        if self._prompt is None or self._source != source:
            self._prompt, self._source = encode(), source
        return self._prompt

    def clear(self) -> None:
        self.images.clear()
        self.files.clear()
        self._source = self._prompt = None

"""Pictures -> what a vision-language model takes: its own processor's work, one picture at a time."""

import hashlib
import logging
from typing import Any

import numpy as np
from PIL import Image as Pillow
from transformers import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from services.engine.base import Image, Picture
from services.engine.cpu.threads import release_team
from services.engine.vision.pixels import pixels
from services.errors import EngineFailed

logger = logging.getLogger(__name__)

# what a processor returns besides the inputs of the vision part
OF_THE_TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "text_replacement_offsets"}


class PictureReader:
    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.placeholder: str = processor.image_token
        self.token = int(processor.tokenizer.convert_tokens_to_ids(self.placeholder))

    def _processed(self, image: Pillow.Image) -> Any:
        return self._processor(
            images=[image],
            text=[self.placeholder],
            add_special_tokens=False,
            return_tensors="np",
            return_text_replacement_offsets=True,
        )

    def tokens(self, image: Image) -> list[int]:
        ids: list[int] = self._processor.tokenizer.encode(image.text, add_special_tokens=False)
        return ids

    def read(self, picture: Picture) -> Image:
        image = pixels(picture)
        try:
            found = self._processed(image)
        finally:
            release_team()  # where torchvision is installed, processors compute with torch
        ((replaced,),) = found["text_replacement_offsets"]
        return Image(
            digest=hashlib.sha256(b"%d %d %b" % (*image.size, image.tobytes())).digest(),
            text=replaced["replacement"],
            num_tokens=int((np.asarray(found["input_ids"]) == self.token).sum()),
            inputs={name: np.asarray(value) for name, value in found.items() if name not in OF_THE_TEXT},
        )


def read_processor(source: str, config: Any, tokenizer: Any) -> Any:
    """As `AutoProcessor` reads it, but with this tokenizer, and with nothing for videos: that needs torchvision."""
    kind = PROCESSOR_MAPPING[type(config)]
    options, _ = kind.get_processor_dict(source)
    parts = {"image_processor": AutoImageProcessor.from_pretrained(source), "tokenizer": tokenizer}

    class ForImages(kind):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return argument and super().check_argument_for_proper_class(argument_name, argument)

    return ForImages.from_args_and_dict([parts.get(name) for name in kind.get_attributes()], options)


def refuse_images(kind: str, why: Exception | str, required: bool) -> None:
    """A model whose images cannot be served is served without them, unless somebody insists on them."""
    reason = " ".join(f"{type(why).__name__}: {why}".split())[:200] if isinstance(why, Exception) else why
    if required:
        raise EngineFailed(f"Images cannot be served with models of the kind {kind}: {reason}")
    logger.warning("%s takes text only: %s", kind, reason)

"""A vision-language model with random weights, to test where images come from."""

import json
from pathlib import Path
from typing import Any

IMAGE, END = "<image>", "<|end|>"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
EYE = {**SIZES, "image_size": 16, "patch_size": 4}
TEMPLATE = """{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}\
{% if part.type == "image" %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"""


def make(folder: Path) -> Path:
    """A random Llava with a byte tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, CLIPImageProcessorPil

    tokenizer = _tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {"model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": 512, **SIZES, **ids}
    config = AutoConfig.for_model(
        "llava",
        text_config=text,
        vision_config={"model_type": "clip_vision_model", **EYE},
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessorPil(**pixels).save_pretrained(folder)
    processor = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def _tokenizer() -> Any:  # imports transformers only when used
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = [END, IMAGE, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(known)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END, IMAGE])
    names = {"image_token": IMAGE}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, pad_token=END, chat_template=TEMPLATE, extra_special_tokens=names
    )

"""Vision-language models of several architectures, small and with random weights, written to a folder to be read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaNextImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
)

END = "<|end|>"
IMAGE = "<image>"
TILES = [f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3)]
SPECIAL = [END, IMAGE, "<video>", "<|vision_start|>", "<|vision_end|>", "<fake_token_around_image>", "<global-img>"]
TEMPLATE = """{% for m in messages %}<{{ m.role }}>{% for part in m.content %}\
{% if part.type == "image" %}<|vision_start|><image><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}\
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""


def tokenizer() -> PreTrainedTokenizerFast:
    """Each byte is a token."""
    known = [*SPECIAL, "<end_of_utterance>", *TILES, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(known)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(known[: known.index("!")])
    # under the names that some kinds have for them
    names = {
        "image_token": IMAGE,
        "video_token": "<video>",
        "boi_token": "<|vision_start|>",
        "eoi_token": "<|vision_end|>",
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=END,
        pad_token=END,
        chat_template=TEMPLATE,
        extra_special_tokens=names,
    )


VOCABULARY = len(tokenizer())
ID = {token: int(tokenizer().convert_tokens_to_ids(token)) for token in SPECIAL}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": ID[END],
}
EYE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "initializer_range": 0.3,
}
QWEN_EYE = {"depth": 2, "num_heads": 2, "patch_size": 4, "initializer_range": 0.3}
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0}
QWEN = {
    "image_token_id": ID[IMAGE],
    "video_token_id": ID["<video>"],
    "vision_start_token_id": ID["<|vision_start|>"],
    "vision_end_token_id": ID["<|vision_end|>"],
}
QWEN_PIXELS = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 1024}}
PINPOINTS = [[16, 32], [32, 16]]
TILED = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}


@dataclass(frozen=True, slots=True)
class Kind:
    type: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    config: Mapping[str, Any]
    pixels: Any
    processor: Mapping[str, Any] = field(default_factory=dict)


KINDS = {
    "llava": Kind(
        "llava",
        {"model_type": "llama", **TEXT},
        {"model_type": "clip_vision_model", **EYE},
        {"image_token_index": ID[IMAGE], "vision_feature_layer": -1},
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava_next": Kind(
        "llava_next",
        {"model_type": "llama", **TEXT},
        {"model_type": "clip_vision_model", **EYE},
        {"image_token_index": ID[IMAGE], "vision_feature_layer": -1, "image_grid_pinpoints": PINPOINTS},
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS
        ),
        {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "gemma3": Kind(
        "gemma3",
        TEXT,
        {"model_type": "siglip_vision_model", **EYE},
        {"image_token_id": ID[IMAGE], "mm_tokens_per_image": 4},
        Gemma3ImageProcessorPil(size={"height": 16, "width": 16}),
        {"image_seq_length": 4},
    ),
    "idefics3": Kind(
        "idefics3",
        {"model_type": "llama", **TEXT},
        EYE,
        {"image_token_id": ID[IMAGE], "scale_factor": 2},
        Idefics3ImageProcessorPil(**TILED),
        {"image_seq_len": 4},
    ),
    "qwen2_vl": Kind(
        "qwen2_vl",
        {**TEXT, "rope_parameters": MROPE},
        {"embed_dim": 16, "hidden_size": 32, **QWEN_EYE},
        QWEN,
        Qwen2VLImageProcessorPil(**QWEN_PIXELS),
    ),
    "qwen2_5_vl": Kind(
        "qwen2_5_vl",
        {**TEXT, "rope_parameters": MROPE},
        {
            "hidden_size": 16,
            "out_hidden_size": 32,
            "intermediate_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            **QWEN_EYE,
        },
        QWEN,
        Qwen2VLImageProcessorPil(**QWEN_PIXELS),
    ),
    "qwen3_vl": Kind(
        "qwen3_vl",
        {**TEXT, "rope_parameters": MROPE},
        {
            "hidden_size": 16,
            "out_hidden_size": 32,
            "intermediate_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
            **QWEN_EYE,
        },
        QWEN,
        Qwen2VLImageProcessorPil(**QWEN_PIXELS),
    ),
}


def write(name: str, folder: Path) -> str:
    """The same weights each time."""
    kind = KINDS[name]
    options = {**kind.config, "text_config": dict(kind.text), "vision_config": dict(kind.vision)}
    config = AutoConfig.for_model(kind.type, tie_word_embeddings=False, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    for weights in model.parameters():  # sharp ones, so that a wrong key shows
        torch.nn.init.normal_(weights, std=0.3) if weights.dim() > 1 else None
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = ID[END]
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    kind.pixels.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(kind.processor))
    return str(folder)

"""Small random models that read whole texts, saved as folders that the engines load."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
WORDS = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz"]
LENGTH = 32  # tokens


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, put together as BERT does."""
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=LENGTH,
    )


def _config(labels: int) -> BertConfig:
    return BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        initializer_range=0.5,  # sharp, so that a wrong segment shows
        num_labels=labels,
    )


def save_reranker(folder: Path, labels: int = 1) -> BertForSequenceClassification:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(_config(labels)).eval()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


def save_embedder(folder: Path) -> BertModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(_config(1), add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model

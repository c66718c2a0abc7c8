"""Small tokenizers made on the spot, in the forms that models use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

EOS = "<|end|>"
TOOL = "<|tool|>"
CORPUS = ["the quick brown fox said hello to the lazy dog, and then some more", "你好，世界", "naïve café 👋🏽 👨‍👩‍👧"]
SMOLLM = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"


def byte_level() -> PreTrainedTokenizerFast:
    """Tokens are runs of bytes (GPT-2, Llama 3, Qwen); one may begin or end within a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[EOS, TOOL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


def byte_fallback() -> PreTrainedTokenizerFast:
    """Tokens are characters, and bytes for those it does not know (Llama 2, Mistral, Gemma); ▁ is a space."""
    known = ["<unk>", EOS, TOOL, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz世é"]
    vocabulary = {token: i for i, token in enumerate(known)} | {"▁a": len(known), "th": len(known) + 1}
    merges = [("▁", "a"), ("t", "h")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([EOS, TOOL])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


def word_piece() -> PreTrainedTokenizerFast:
    """Tokens are words, and their parts with ## in front (BERT); the decoder puts the spaces."""
    letters = "abcdefghijklmnopqrstuvwxyz世é"
    known = ["<unk>", EOS, TOOL, *letters, *(f"##{letter}" for letter in letters), *".,!", "the", "##ing"]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(known)}, unk_token="<unk>"))
    tokenizer.add_special_tokens([EOS, TOOL])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


def smollm() -> Any:
    return AutoTokenizer.from_pretrained(SMOLLM)


@dataclass(frozen=True, slots=True)
class WrittenInPython:
    """The same tokenizer as one without the tokenizers library behind it."""

    tokenizer: Any

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

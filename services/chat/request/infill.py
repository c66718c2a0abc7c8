"""Fill-in-the-middle: a prompt and a suffix, between the marks that a model was trained with (arXiv:2207.14255)."""

from dataclasses import dataclass

from services.engine.base import Tokenizer
from services.errors import InvalidRequest, UnsupportedParameter


@dataclass(frozen=True, slots=True)
class InfillMarks:
    """What comes before, between and after prompt and suffix; each of the marks is one token."""

    prefix: str
    suffix: str
    middle: str = ""
    suffix_first: bool = False

    def text(self, prompt: str, suffix: str) -> str:
        first, second = (self.prefix + prompt, self.suffix + suffix)
        return (second + first if self.suffix_first else first + second) + self.middle

    @property
    def marks(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.prefix, self.suffix, self.middle)))


ALL = (
    InfillMarks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma, Granite 4
    InfillMarks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder 1 and 2, Granite Code
    InfillMarks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    InfillMarks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    InfillMarks("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    InfillMarks("[PREFIX]", "[SUFFIX]", suffix_first=True),  # Codestral
)
# Some models end with one of these, which their own list of ends need not have.
ENDS = ("<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<file_sep>", "▁<EOT>")


def infilled(prompt: str | list[int], suffix: str, tokenizer: Tokenizer) -> str:
    """Raises the errors of the parameter `suffix`."""
    marks = next((each for each in ALL if all(_token(mark, tokenizer) is not None for mark in each.marks)), None)
    if marks is None:
        raise UnsupportedParameter("suffix", "is not supported by this model: its tokenizer has no tokens to fill in")
    if not isinstance(prompt, str):
        raise InvalidRequest("'%s' goes with prompts that are texts", "suffix")
    return marks.text(prompt, suffix)


def end_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    return tuple(token for each in ENDS if (token := _token(each, tokenizer)) is not None)


def _token(mark: str, tokenizer: Tokenizer) -> int | None:
    """Its id, if it is one token."""
    ids = tokenizer.encode(mark, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and tokenizer.convert_ids_to_tokens(ids) == [mark] else None

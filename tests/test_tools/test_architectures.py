"""Ten architectures of `python -m tools.architectures`, and its table."""

from pathlib import Path

import pytest

from tests.threads import computing_with
from tools.architectures import table, trial
from tools.architectures.__main__ import sweep
from tools.architectures.trial import Outcome, Prompt, Result, attempt

EXPECTED = {
    "llama": Outcome.BATCHED,
    "gemma2": Outcome.BATCHED,
    "gemma3_text": Outcome.BATCHED,
    "gpt_oss": Outcome.BATCHED,
    "qwen2_moe": Outcome.BATCHED,
    "deepseek_v3": Outcome.BATCHED,
    "llama4_text": Outcome.SEQUENTIAL,
    "qwen3_next": Outcome.SEQUENTIAL,
    "mamba2": Outcome.SEQUENTIAL,
    "jamba": Outcome.SEQUENTIAL,
    "recurrent_gemma": Outcome.REFUSED,
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_does_what_the_table_says(kind: str) -> None:
    with computing_with(1):
        result = attempt(kind)
    assert result.outcome == EXPECTED[kind], result.detail
    assert result.outcome in (Outcome.BATCHED, Outcome.SEQUENTIAL) or result.detail


def test_another_answer_than_the_models_own_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens that are fed are not those that `generate` was given."""
    monkeypatch.setattr(trial, "SCENARIOS", {"alone": [Prompt(40, 16)]})
    run = trial._run
    monkeypatch.setattr(
        trial, "_run", lambda runner, prompts: run(runner, [Prompt(39, each.max_tokens) for each in prompts])
    )
    with computing_with(1):
        assert attempt("llama") == Result("llama", Outcome.WRONG, "alone: answer token 0 after 40")


def test_what_takes_too_long_or_cannot_be_made_is_not_tried() -> None:
    late, unknown = sweep(["llama"], timeout=0), sweep(["no such kind"])
    assert [result.outcome for result in (*late, *unknown)] == [Outcome.UNTRIED] * 2


def test_the_table_is_written_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write([Result("llama", Outcome.BATCHED), Result("xlm", Outcome.REFUSED, "no | cache")], page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| batched | 1 | llama |" in text
    assert "| xlm | no \\| cache |" in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="architectures: begin"):
        table.write([], page)

"""Ten architectures of `python -m tools.architectures`, and its table."""

from pathlib import Path

import pytest
import torch

from tests.threads import computing_with
from tools.architectures import table, trial
from tools.architectures.__main__ import append_result, read_results, sweep
from tools.architectures.trial import Outcome, Prompt, Result, attempt

EXPECTED = {
    "llama": Outcome.BATCHED,
    "gemma2": Outcome.BATCHED,
    "gemma3_text": Outcome.BATCHED,
    "gpt_oss": Outcome.BATCHED,
    "qwen2_moe": Outcome.BATCHED,
    "deepseek_v3": Outcome.BATCHED,
    "llama4_text": Outcome.BATCHED,
    "qwen3_5_text": Outcome.BATCHED,
    "granitemoehybrid": Outcome.BATCHED,
    "mamba2": Outcome.BATCHED,
    "jamba": Outcome.BATCHED,
    "falcon": Outcome.BATCHED,
    "deepseek_v32": Outcome.SEQUENTIAL,
    "recurrent_gemma": Outcome.REFUSED,
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_does_what_the_table_says(kind: str) -> None:
    with computing_with(1):
        result = attempt(kind)
    assert result.outcome == EXPECTED[kind], result.detail
    assert result.outcome in (Outcome.BATCHED, Outcome.SEQUENTIAL) or result.detail


@pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3_next", "bailing_hybrid", "bloom"])
def test_half_the_width_is_batched_too(kind: str) -> None:
    with computing_with(1):
        assert attempt(kind, torch.bfloat16) == Result(kind, Outcome.BATCHED)


def test_another_answer_than_the_models_own_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens that are fed are not those that `generate` was given."""
    monkeypatch.setattr(trial, "SCENARIOS", {"alone": [Prompt(40, 16)]})
    run = trial.run
    monkeypatch.setattr(
        trial, "run", lambda runner, prompts: run(runner, [Prompt(39, each.max_tokens) for each in prompts])
    )
    with computing_with(1):
        assert attempt("llama") == Result("llama", Outcome.WRONG, "alone: answer token 0 after 40")


def test_what_takes_too_long_or_cannot_be_made_is_not_tried() -> None:
    late, unknown = sweep(["llama"], timeout=0), sweep(["no such kind"])
    assert [result.outcome for result in (*late, *unknown)] == [Outcome.UNTRIED] * 2


def test_results_are_kept_from_run_to_run(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    results = [Result("llama", Outcome.BATCHED), Result("xlm", Outcome.REFUSED, "no cache")]
    assert read_results(file) == []
    for result in results:
        append_result(file, result)
    assert read_results(file) == results


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

"""The table of architectures in docs/models.md."""

from collections.abc import Iterable
from pathlib import Path

import transformers

from tools.architectures.trial import Outcome, Result

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- architectures: begin -->", "<!-- architectures: end -->"


def write(results: Iterable[Result], page: Path = PAGE) -> None:
    """Between the two marks, which the page must have."""
    text = page.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{page} has no {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{render(list(results))}\n{END}{after}", "utf-8")


def render(results: list[Result]) -> str:
    version = transformers.__version__
    lines = [
        f"{len(results)} kinds of transformers {version}, each a tiny random model in float32 on the CPU.",
        "",
        "| | kinds | |",
        "|---|---|---|",
    ]
    for outcome in Outcome:
        found = sorted(result.kind for result in results if result.outcome == outcome)
        lines += [f"| {outcome} | {len(found)} | {', '.join(found)} |"] if found else []
    reasons = [result for result in results if result.detail]
    if reasons:
        lines += ["", "| kind | why |", "|---|---|"]
        lines += [f"| {each.kind} | {_cell(each.detail)} |" for each in sorted(reasons, key=lambda each: each.kind)]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

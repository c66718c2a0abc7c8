"""Our own attention says what torch's says, for any mix of tokens."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from services.engine.cpu import kernels
from services.engine.cpu.attention import Scoring
from tests.test_engine.compilers import needs_compiler

SLOTS, LENGTH = 4, 700  # longer than the scores that are held at once
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def expected(
    queries: Tensor, keys: Tensor, values: Tensor, seen: list[tuple[int, int, int]], scoring: Scoring
) -> Tensor:
    rows = []
    for query, (slot, begin, end) in zip(queries, seen, strict=True):
        mine = keys[slot, :, begin:end].float(), values[slot, :, begin:end].float()
        rows.append(one_query(query.float(), *mine, scoring))
    return torch.stack(rows)


def one_query(query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
    if scoring == Scoring(scoring.scale):
        return scaled_dot_product_attention(query[:, None], keys, values, scale=scoring.scale, enable_gqa=True)[:, 0]
    keys, values = (each.repeat_interleave(len(query) // len(each), dim=0) for each in (keys, values))
    scores = torch.einsum("hd,hkd->hk", query, keys) * scoring.scale
    if scoring.softcap:
        scores = scoring.softcap * (scores / scoring.softcap).tanh()
    total = scores.exp().sum(-1) + (0 if scoring.sinks is None else scoring.sinks.float().exp())
    return torch.einsum("hk,hkd->hd", scores.exp() / total[:, None], values)


PLAIN = Scoring(0.3)


def check(
    queries: Tensor, keys: Tensor, values: Tensor, seen: list[tuple[int, int, int]], scoring: Scoring = PLAIN
) -> None:
    slots, begins, ends = torch.tensor(seen).T
    said = kernels.attend(queries, keys, values, slots, begins, ends, scoring)
    tolerance = TOLERANCE[queries.dtype]
    assert said.dtype == queries.dtype
    torch.testing.assert_close(
        said.float(), expected(queries, keys, values, seen, scoring), atol=tolerance, rtol=tolerance
    )


MIXED = [
    (2, 0, 1),
    (0, 0, 300),
    *((3, 0, 255 + i) for i in range(70)),  # more than go through the keys together
    *((1, 40 + i, 90 + i) for i in range(9)),
    (2, 5, 6),
]


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [8, 64, 80, 128, 256])
def test_any_mix_in_any_numbers(native_kernel: None, dtype: torch.dtype, size: int) -> None:
    keys, values = (random(SLOTS, 2, LENGTH, size, dtype=dtype) for _ in range(2))
    check(random(len(MIXED), 6, size, dtype=dtype), keys, values, MIXED)


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_soft_capping_and_sinks(native_kernel: None, dtype: torch.dtype, softcap: float | None) -> None:
    keys, values = (random(SLOTS, 2, LENGTH, 64, dtype=dtype) for _ in range(2))
    scoring = Scoring(0.3, softcap=softcap, sinks=3 * random(6, dtype=dtype))
    check(random(len(MIXED), 6, 64, dtype=dtype), keys, values, MIXED, scoring)
    check(random(len(MIXED), 6, 64, dtype=dtype), keys, values, MIXED, Scoring(0.3, softcap=softcap))


@needs_compiler
def test_values_narrower_than_keys_and_heads_that_lie_first(native_kernel: None) -> None:
    queries = random(4, len(MIXED), 40).transpose(0, 1)
    check(queries, random(SLOTS, 1, LENGTH, 40), random(SLOTS, 1, LENGTH, 24), MIXED)


@needs_compiler
def test_what_is_not_to_be_seen_may_be_anything(native_kernel: None) -> None:
    keys, values = random(SLOTS, 2, LENGTH, 16), random(SLOTS, 2, LENGTH, 16)
    for tensor in (keys, values):
        tensor[:, :, 50:] = torch.nan
        tensor[:, :, :3] = torch.nan
    check(random(9, 4, 16), keys, values, [(i % 2, 3, 50 - i) for i in range(9)])


@needs_compiler
def test_a_text_is_not_spoiled_by_the_one_before_it(native_kernel: None) -> None:
    keys, values = random(1, 2, 60, 16), random(1, 2, 60, 16)
    texts = [(0, begin, end) for begin, end in ((0, 5), (5, 40), (40, 41), (41, 60)) for _ in range(begin, end)]
    values[:, :, :5] = torch.nan  # the model overflowed on it
    slots, begins, ends = torch.tensor(texts).T
    said = kernels.attend(random(len(texts), 2, 16), keys, values, slots, begins, ends, Scoring(0.3))
    assert said.isnan().any(-1).any(-1).tolist() == [token < 5 for token in range(len(texts))]


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_no_bit_depends_on_the_company(native_kernel: None, dtype: torch.dtype) -> None:
    """A token that was guessed and one that has a step of its own come out the same."""
    keys, values = (random(SLOTS, 3, LENGTH, 64, dtype=dtype) for _ in range(2))
    queries = random(len(MIXED), 9, 64, dtype=dtype)
    seen = [(slot, 0, end) for slot, _, end in MIXED]
    slots, begins, ends = torch.tensor(seen).T
    together = kernels.attend(queries, keys, values, slots, begins, ends, Scoring(0.3))
    for i in range(len(seen)):
        part = slice(i, i + 1)
        alone = kernels.attend(queries[part], keys, values, slots[part], begins[part], ends[part], Scoring(0.3))
        assert torch.equal(alone, together[part])


@needs_compiler
@given(data=st.data(), heads=st.sampled_from([(1, 1), (1, 5), (3, 3), (2, 1), (1, 30)]))
@settings(max_examples=40, deadline=None)
def test_any_ranges(native_kernel: None, data: st.DataObject, heads: tuple[int, int]) -> None:
    of_keys, group = heads
    slots = data.draw(st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=30))
    seen = []
    for slot, tokens in itertools.groupby(slots):
        for _ in tokens:
            begin = data.draw(st.integers(0, LENGTH - 1))
            seen.append((slot, begin, data.draw(st.integers(begin + 1, LENGTH))))
    keys, values = random(SLOTS, of_keys, LENGTH, 16), random(SLOTS, of_keys, LENGTH, 16)
    check(random(len(seen), of_keys * group, 16), keys, values, seen)


@needs_compiler
def test_the_library_appears_whole_and_once(native_kernel: None, folder: Path) -> None:
    library = kernels.library_path(folder)
    before = library.stat().st_ino
    kernels.build(library)
    assert kernels.is_loaded()
    assert library.stat().st_ino == before
    assert {path.suffix for path in folder.glob(f"{library.stem}.*")} == {".so", ".lock"}


def test_the_compiler_finds_its_folder_from_wherever_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders: list[Path] = []

    def compiled(folder: Path) -> str:
        folders.append(folder)
        (tmp_path / "whole").touch()
        return str(tmp_path / "whole")

    monkeypatch.setattr(kernels, "compile_sources", compiled)
    kernels.build(Path("models") / "kernels-1.so")
    assert [folder.is_absolute() for folder in folders] == [True]
    assert (tmp_path / "models" / "kernels-1.so").exists()


def test_what_a_killed_process_left_is_in_nobody_s_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "new" / "kernels-1.so"
    (left := library.with_suffix(".tmp")).mkdir(parents=True)
    (left / "half").touch()
    whole = tmp_path / "whole"
    whole.touch()
    monkeypatch.setattr(kernels, "compile_sources", lambda folder: str(whole))
    kernels.build(library)
    assert library.exists()
    assert not left.exists()

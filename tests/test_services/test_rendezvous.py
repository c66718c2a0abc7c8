"""The choice between several servers."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.rendezvous import FACTOR, GAP, ranked

KEYS = [f"conversation {number}".encode() for number in range(1000)]
NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=12, unique=True)


def owners(names: list[str]) -> dict[bytes, str]:
    return {key: ranked(key, names, lambda name: name, lambda name: 0)[0] for key in KEYS}


@given(NAMES)
def test_one_that_goes_moves_its_own_keys_only(names: list[str]) -> None:
    before, after = owners(names), owners(names[1:])
    assert {key for key in KEYS if before[key] != after[key]} == {key for key in KEYS if before[key] == names[0]}


@given(NAMES)
def test_each_has_its_share(names: list[str]) -> None:
    """Within six standard deviations."""
    share = 1 / len(names)
    spread = 6 * (len(KEYS) * share * (1 - share)) ** 0.5
    counted = Counter(owners(names).values())
    assert all(abs(counted[name] - len(KEYS) * share) <= spread for name in names)


@given(NAMES, st.integers(0, 100), st.integers(0, 200))
def test_load_overrides_the_key(names: list[str], least: int, more: int) -> None:
    for key in KEYS[:5]:
        first = ranked(key, names, lambda name: name, lambda name: 0)[0]
        loads = dict.fromkeys(names, least) | {first: least + more}
        chosen = ranked(key, names, lambda name: name, loads.__getitem__)[0]
        assert (chosen == first) == (more <= GAP or least + more <= least * FACTOR)

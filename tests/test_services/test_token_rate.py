"""Tokens a second."""

from services.token_rate import WINDOW_S, TokenRate


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_tokens_of_the_last_whole_seconds_count() -> None:
    clock = Clock()
    rate = TokenRate(clock)
    for second in range(WINDOW_S):
        clock.now = 100.5 + second
        rate.add(10)
        rate.add(10)
    assert rate.per_second == 20 * (WINDOW_S - 1) / WINDOW_S  # the second that runs is not whole
    clock.now += 1
    assert rate.per_second == 20
    clock.now += WINDOW_S - 1
    assert rate.per_second == 20 / WINDOW_S
    clock.now += 1
    assert rate.per_second == 0


def test_nothing_is_no_second() -> None:
    clock = Clock()
    rate = TokenRate(clock)
    rate.add(7)
    for _ in range(20):
        clock.now += 0.2
        rate.add(0)
    assert rate.per_second == 7 / WINDOW_S

"""The headers that say how much of a key's limits is left: OpenAI's, unless a spec has its own."""

from collections.abc import Callable, Iterator, Mapping

from services.callers import RateReport, RateStatus

RateHeaders = Callable[[RateReport], Mapping[str, str]]
RATE_HEADERS = "rate_headers"  # in the request's state if its protocol has its own


def rate_headers(report: RateReport) -> dict[str, str]:
    return dict(_headers("requests", report.requests)) | dict(_headers("tokens", report.tokens))


def _headers(kind: str, status: RateStatus | None) -> Iterator[tuple[str, str]]:
    if status is not None:
        yield f"x-ratelimit-limit-{kind}", str(status.limit)
        yield f"x-ratelimit-remaining-{kind}", str(status.remaining)
        yield f"x-ratelimit-reset-{kind}", _duration(status.reset_s)


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 7.66s, 1m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.4g}s"

"""How many examples of generated tests: a part of them in `make test`, several times as many in `make test-all`."""

from hypothesis import settings

THOROUGH = "thorough"  # the profile of `make test-all`


def examples(few: int, many: int) -> int:
    return many if settings.get_current_profile_name() == THOROUGH else few

"""docs/settings.md and .env.example are generated from the code."""

from pathlib import Path

from app.common.settings import Settings
from tools import settings_list, settings_page


def test_the_page_is_up_to_date() -> None:
    assert settings_page.PAGE.read_text() == settings_page.page(), "run: python -m tools.settings_page"


def test_the_example_is_up_to_date() -> None:
    assert settings_page.EXAMPLE.read_text() == settings_page.example(), "run: python -m tools.settings_page"


def test_every_setting_has_a_meaning() -> None:
    settings = [each for section in settings_list.sections() for each in section.settings]
    assert len(settings) > 50
    assert [each.name for each in settings if not each.meaning] == []


def test_uncommented_example_equals_the_defaults(tmp_path: Path) -> None:
    lines = [line[1:] for line in settings_page.example().splitlines() if line.startswith("#PARLEY_")]
    given = [line for line in lines if not line.endswith("=")]
    assert len(given) > 40
    (tmp_path / ".env").write_text("\n".join(given))
    assert Settings(_env_file=tmp_path / ".env") == Settings(_env_file=None)

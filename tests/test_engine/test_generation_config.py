"""What a model's authors recommend, read from its files."""

import json
import logging
import math
from pathlib import Path

import pytest
from gguf import GGUFWriter
from pydantic import ValidationError

from schemas.sampling_schema import SamplingSettings
from services.engine.base import SamplingDefaults
from services.engine.loading.generation_config import FILE, read_sampling_defaults

ALL = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05}


def read(folder: Path, **stated: object) -> SamplingDefaults | None:
    (folder / FILE).write_text(json.dumps(stated))
    return read_sampling_defaults(str(folder))


def test_all_values_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, **ALL, max_new_tokens=9, eos_token_id=[1, 2]) == SamplingDefaults(**ALL)


def test_do_sample_says_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, do_sample=False) == SamplingDefaults()
    assert read(tmp_path, do_sample=False, temperature=0.7) == SamplingDefaults(temperature=0.7)
    assert read(tmp_path, do_sample=True, temperature=0) == SamplingDefaults(temperature=0)


def test_a_folder_without_the_file_recommends_nothing(tmp_path: Path) -> None:
    assert read_sampling_defaults(str(tmp_path)) == SamplingDefaults()


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\ufeff{}"])
def test_a_file_that_cannot_be_read_recommends_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert read_sampling_defaults(str(tmp_path)) == SamplingDefaults()


SENSELESS: list[tuple[str, object]] = [
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "hot"),
    ("temperature", math.nan),
    ("temperature", True),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_p", math.inf),
    ("top_k", -2),
    ("top_k", 0.5),
    ("top_k", [50]),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("repetition_penalty", 0),
    ("repetition_penalty", 101),
]


@pytest.mark.parametrize(("name", "value"), SENSELESS, ids=str)
def test_a_value_that_makes_no_sense_is_left_out_and_logged(
    tmp_path: Path, name: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path, **ALL | {name: value})
    assert found == SamplingDefaults(**{key: each for key, each in ALL.items() if key != name})
    assert name in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *SENSELESS,
        *(("temperature", each) for each in (0, 1, 2)),
        *(("top_p", each) for each in (0.01, 1)),
        *(("top_k", each) for each in (-1, 0, 50)),
        *(("min_p", each) for each in (0, 1)),
        *(("repetition_penalty", each) for each in (0.01, 100)),
    ],
    ids=str,
)
def test_what_makes_sense_is_what_settings_and_requests_may_say(tmp_path: Path, name: str, value: object) -> None:
    try:
        expected = SamplingSettings.model_validate({name: value}, strict=True)
    except ValidationError:
        assert read(tmp_path, **{name: value}) == SamplingDefaults()
    else:
        assert read(tmp_path, **{name: value}) == SamplingDefaults(**expected.model_dump())


def gguf(path: Path, **stated: float) -> str:
    writer = GGUFWriter(path, "llama")
    for name, value in stated.items():
        key = f"general.sampling.{name}"
        if isinstance(value, int):
            writer.add_int32(key, value)
        else:
            writer.add_float32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return str(path)


def test_a_gguf_file_says_it_in_its_metadata(tmp_path: Path) -> None:
    source = gguf(tmp_path / "model.gguf", temp=0.6, top_p=0.95, top_k=20, min_p=0.05, penalty_repeat=1.05)
    assert read_sampling_defaults(source) == SamplingDefaults(**ALL)
    assert read_sampling_defaults(gguf(tmp_path / "other.gguf")) == SamplingDefaults()
    assert read_sampling_defaults(gguf(tmp_path / "odd.gguf", temp=9.0, top_k=3)) == SamplingDefaults(top_k=3)


def test_a_gguf_file_that_is_none_recommends_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF, but no more than that")
    assert read_sampling_defaults(str(tmp_path / "model.gguf")) == SamplingDefaults()


@pytest.mark.parametrize("name", ["nobody/has-this-model", "not/a/name", "", "../up", "a b"])
def test_what_is_not_here_is_not_known_yet(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (read_sampling_defaults(name) or SamplingDefaults()) == SamplingDefaults()


def test_the_hubs_file_is_found_where_a_load_has_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--owner--model"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert read_sampling_defaults("owner/model") is None
    (folder / "snapshots" / "abc" / FILE).write_text('{"top_k": 7}')
    assert read_sampling_defaults("owner/model") == SamplingDefaults(top_k=7)

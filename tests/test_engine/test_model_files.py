"""Files that are missing, cut off or of another kind are found without loading anything."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.engine.loading.model_files import check
from services.engine.loading.unusable import UnusableModel


def safetensors(length: int = 8) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [length // 4], "data_offsets": [0, length]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(length)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf(rows: int = 64) -> bytes:
    """Facts of each shape, one tensor of Q4_1: 20 bytes for 32 numbers."""
    words = text(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"b")
    numbers = text(b"scores") + struct.pack("<IIQ", 9, 6, 3) + bytes(12)
    facts = [
        text(b"general.alignment") + struct.pack("<II", 4, 32),
        words,
        numbers,
        text(b"n") + struct.pack("<IB", 7, 1),
    ]
    tensor = text(b"weight") + struct.pack("<IQQIQ", 2, 32, rows, 3, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(facts)) + b"".join(facts) + tensor
    return head + bytes(-len(head) % 32) + bytes(20 * rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}\n')
    return tmp_path


def test_a_whole_folder_is_taken(folder: Path) -> None:
    check(str(folder), "chat")


@pytest.mark.parametrize("name", ["owner/model", "gpt2", "Qwen/Qwen2.5-0.5B"])
def test_of_a_hub_only_the_form_of_the_name_is_known(name: str) -> None:
    check(name, "chat")


@pytest.mark.parametrize("name", ["/typo", "./typo", "a/b/c", "typo.gguf", "../x", "what is this", ""])
def test_what_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if not name:
        name = str(tmp_path / "none")
    with pytest.raises(UnusableModel, match="there is no folder or GGUF file"):
        check(name, "chat")


def cut(name: str, by: int = 1) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-by])


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (cut("config.json"), "config.json is no JSON"),
        (write("config.json", "[]"), "names no model_type"),
        (write("config.json", '{"model_type": "bert"}'), "is an encoder"),
        (write("config.json", '{"model_type": "t5", "is_encoder_decoder": true}'), r"is an encoder-decoder \(t5\)"),
        (write("hf_quant_config.json", "{}"), "is quantised by ModelOpt"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (cut("model.safetensors"), "model.safetensors is not whole"),
        (write("model.safetensors", b""), "not whole"),
        (write("model.safetensors", b"\xff" * 100), "not whole, or no safetensors"),
        (write("model.safetensors", safetensors() + b"more"), "not whole"),
        (write("model.safetensors", (9).to_bytes(8, "little") + b"[not json"), "header cannot be read"),
        (write("model.safetensors", (2).to_bytes(8, "little") + b"[]"), "header cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (cut("tokenizer.json", 3), "tokenizer.json is not whole"),
    ],
)
def test_what_is_broken_is_named(folder: Path, break_it: Callable[[Path], object], said: str) -> None:
    break_it(folder)
    with pytest.raises(UnusableModel, match=said) as refused:
        check(str(folder), "chat")
    assert str(folder) in str(refused.value)


def test_shards_are_all_there_and_whole(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnusableModel, match=r"two\.safetensors is missing"):
        check(str(folder), "chat")
    (folder / "two.safetensors").write_bytes(safetensors(64)[:-9])
    with pytest.raises(UnusableModel, match=r"two\.safetensors is not whole"):
        check(str(folder), "chat")
    (folder / "two.safetensors").write_bytes(safetensors(64))
    check(str(folder), "chat")


def test_an_embedding_model_may_keep_its_transformer_in_a_folder(folder: Path) -> None:
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).rename(inner / name)
    (inner / "config.json").write_text('{"model_type": "bert"}')
    modules = [{"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    check(str(folder), "embedding")


def test_a_gguf_file_in_a_folder_is_to_be_named_itself(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "tiny.gguf").write_bytes(gguf())
    with pytest.raises(UnusableModel, match=r"name the GGUF file itself, e\.g\. .*tiny\.gguf"):
        check(str(folder), "chat")


def test_a_gguf_file_beside_its_configuration_and_tokenizer(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "tiny.gguf").write_bytes(gguf())
    check(str(folder), "chat")
    (folder / "tiny.gguf").write_bytes(gguf()[:-1])
    with pytest.raises(UnusableModel, match=r"tiny\.gguf is not whole"):
        check(str(folder), "chat")


def test_a_whole_gguf_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf())
    check(str(path), "chat")


@pytest.mark.parametrize("left", [0, 3, 4, 12, 40, 100, 200, len(gguf()) - 20, len(gguf()) - 1])
def test_a_gguf_file_that_is_cut_off_anywhere(tmp_path: Path, left: int) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf()[:left])
    with pytest.raises(UnusableModel, match=r"tiny\.gguf is (no GGUF file|not whole)"):
        check(str(path), "chat")


def test_another_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_text("hello")
    with pytest.raises(UnusableModel, match="neither a model's folder nor a GGUF file"):
        check(str(path), "chat")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, services.engine.loading.model_files as files\n"
        "files.check('owner/name', 'chat')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

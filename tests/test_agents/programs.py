"""Agent programs out of npm, each in a folder of its own that is kept between runs."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

SECONDS = 600.0  # no test measures time: what takes so long never happens


@dataclass(frozen=True, slots=True)
class Program:
    package: str
    version: str
    command: str
    setup: str = ""  # a script of its own that brings its binary into place; npm may not run it by itself

    @property
    def spec(self) -> str:
        return f"{self.package}@{self.version}"


CODEX = Program("@openai/codex", "0.171.0", "codex")
CLAUDE_CODE = Program("@anthropic-ai/claude-code", "2.1.332", "claude", setup="install.cjs")
OPENCODE = Program("opencode-ai", "1.18.33", "opencode", setup="postinstall.mjs")
QWEN_CODE = Program("@qwen-code/qwen-code", "0.24.4", "qwen")
PI = Program("@mariozechner/pi-coding-agent", "0.73.1", "pi")


@cache
def installed(program: Program) -> Path:
    """Its command. A test that needs one is skipped where it cannot be had."""
    folder = _cache() / f"{program.command}-{program.version}"
    if not folder.exists():
        _install(program, folder)
    return folder / "node_modules" / ".bin" / program.command


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "parley-tests" / "agents"


def _install(program: Program, folder: Path) -> None:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip(f"needs node and npm, which bring {program.spec}")
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    part.mkdir(parents=True)
    npm = ["npm", "install", "--prefix", str(part), "--no-audit", "--no-fund", "--ignore-scripts", program.spec]
    try:
        subprocess.run(npm, check=True, capture_output=True, timeout=SECONDS)
        if program.setup:
            package = part / "node_modules" / program.package
            subprocess.run(["node", program.setup], cwd=package, check=True, capture_output=True, timeout=SECONDS)
        part.rename(folder)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm has not brought {program.spec}: {error}")
    finally:
        shutil.rmtree(part, ignore_errors=True)

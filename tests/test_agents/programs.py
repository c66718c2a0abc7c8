"""Agent programs out of npm, each in a folder of its own that is kept between runs."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

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

    @property
    def folder(self) -> Path:
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        return cache / "parley-tests" / "agents" / f"{self.command}-{self.version}"


CODEX = Program("@openai/codex", "0.171.0", "codex")
CLAUDE_CODE = Program("@anthropic-ai/claude-code", "2.1.332", "claude", setup="install.cjs")
OPENCODE = Program("opencode-ai", "1.18.33", "opencode", setup="postinstall.mjs")
QWEN_CODE = Program("@qwen-code/qwen-code", "0.24.4", "qwen")
PI = Program("@mariozechner/pi-coding-agent", "0.73.1", "pi")
PROGRAMS = (CODEX, CLAUDE_CODE, OPENCODE, QWEN_CODE, PI)


@cache
def installed(program: Program) -> Path:
    """Its command. A test that needs one is skipped where it cannot be had."""
    try:
        install(program)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm has not brought {program.spec}: {error}")
    return program.folder / "node_modules" / ".bin" / program.command


def install(program: Program) -> None:
    """Raises OSError or SubprocessError where npm, node or the network is missing."""
    folder = program.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # of two runs at once the later one waits
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
            _fetch(program, part)
            part.rename(folder)


def _fetch(program: Program, folder: Path) -> None:
    npm = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", program.spec]
    subprocess.run(npm, check=True, timeout=SECONDS)
    if program.setup:
        package = folder / "node_modules" / program.package
        own = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        subprocess.run(["node", program.setup], cwd=package, env=own, check=True, timeout=SECONDS)


if __name__ == "__main__":
    for each in PROGRAMS:
        print(f"{each.spec} in {each.folder}", flush=True)  # noqa: T201
        install(each)

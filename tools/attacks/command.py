"""`parley reliability attack`: runs attacks on its own servers or on a running one."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tools.attacks import sites
from tools.attacks.registry import ATTACKS, fits
from tools.attacks.registry import attack as made
from tools.attacks.target import Finding, Target

MAX_LISTED = 20  # findings listed for each attack
Sites = list[tuple[AbstractContextManager[Target], list[str]]]
Findings = dict[str, Finding]


def attack(
    only: Annotated[list[str], typer.Option(help=f"Some of: {', '.join(ATTACKS)}.")] = [],  # noqa: B006  typer copies it
    address: Annotated[
        str | None, typer.Option(help="http://HOST:PORT of a running server, instead of own ones.")
    ] = None,
    key: Annotated[list[str], typer.Option(help="Two keys of that server; none where it has none.")] = [],  # noqa: B006
    every: Annotated[int, typer.Option(min=1, help="Of many requests each nth only.")] = 1,
    models_dir: Annotated[Path, typer.Option(help="Where default models are kept.")] = Path("models"),
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("build/attack.json"),
) -> None:
    """Attack the service as its callers, strangers and web pages could; exit code 1 if anything gets through."""
    names = _names(only)
    chosen = [_named(address, tuple(key), names)] if address else _own(models_dir, names)
    findings = dict(_findings(chosen, every))
    _show(findings)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({name: asdict(each) for name, each in findings.items()}, indent=2))
    raise typer.Exit(int(any(each.through for each in findings.values())))


def _names(only: list[str]) -> list[str]:
    if unknown := [each for each in only if each not in ATTACKS]:
        raise typer.BadParameter(f"there is no attack '{unknown[0]}': {', '.join(ATTACKS)}", param_hint="--only")
    return [name for name in ATTACKS if not only or name in only]


def _named(address: str, keys: tuple[str, ...], names: list[str]) -> tuple[AbstractContextManager[Target], list[str]]:
    try:
        target = sites.named(address, keys)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--address") from error
    fitting = [name for name in names if fits(name, target)]
    if not fitting:
        raise typer.BadParameter(
            f"none of them is for a server {'with' if keys else 'without'} keys", param_hint="--only"
        )
    return nullcontext(target), fitting


def _own(models_dir: Path, names: list[str]) -> Sites:
    """Attacks on servers without keys run on one that may open few files only."""
    with_keys = [name for name in names if ATTACKS[name].keys]
    others = [name for name in names if not ATTACKS[name].keys]
    return [(sites.guarded(models_dir), with_keys), (sites.unguarded(models_dir), others)]


def _findings(chosen: Sites, every: int) -> Iterator[tuple[str, Finding]]:
    for site, names in chosen:
        if not names:
            continue
        with site as target:
            for name in names:
                Console(stderr=True).print(f"{name} …")
                yield name, asyncio.run(made(name, replace(target, every=every)))


def _show(findings: Findings) -> None:
    table = Table("attack", "tries", "got through", "worst heartbeat, ms", "seconds", "also seen")
    for name, each in findings.items():
        notes = ", ".join(f"{what}: {seen}" for what, seen in each.notes.items())
        beat = "" if each.worst_heartbeat_ms is None else f"{each.worst_heartbeat_ms:g}"
        table.add_row(name, str(each.tries), str(len(each.through)), beat, f"{each.seconds:.1f}", notes)
    console = Console()
    console.print(table)
    for name, each in findings.items():
        for what in each.through[:MAX_LISTED]:
            console.print(f"{name}: {what}", markup=False, highlight=False, soft_wrap=True)

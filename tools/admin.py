"""`parley admin reload`."""

from typing import Any

import typer

from tools.server_client import SERVER, Key, Url, checked, server

app = typer.Typer(
    help="Administers a running server.", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def admin() -> None:
    """Administer a running server."""


@app.command("reload")
def reload(url: Url = SERVER, api_key: Key = None) -> None:
    """Apply changed keys and models of .env and parley.toml without a restart. Needs an admin key."""
    with server(url, api_key) as client:
        for line in _lines(checked(client.post("/admin/reload"))):
            typer.echo(line)


def _lines(found: dict[str, Any]) -> list[str]:
    models = [f"model {name}: {what}" for what, names in found["models"].items() for name in names]
    keys = [f"keys of the settings: {number} {what}" for what, number in found["keys"].items() if number]
    restart = [f"{name} has changed, too: it holds from the next start on" for name in found["needs_restart"]]
    return [*models, *keys, *restart] or ["nothing has changed"]

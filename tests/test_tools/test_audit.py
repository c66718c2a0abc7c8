import asyncio

from click.testing import Result
from typer.testing import CliRunner

from database.session import Database
from services.conversation_service import ConversationService
from services.key_service import KeyService
from tests.test_tools.test_keys import run_in_thread
from tools import audit, history


async def invoke(app: object, *arguments: str) -> Result:
    result: Result = await asyncio.to_thread(CliRunner().invoke, app, arguments)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result


async def test_what_the_command_line_changes_is_logged(database: Database, database_url: str) -> None:
    await run_in_thread("create", "--name", "laptop", url=database_url)
    await run_in_thread("rotate", "laptop", url=database_url)
    await run_in_thread("revoke", "laptop", url=database_url)
    ((key, project),) = await KeyService(database).keys()
    await ConversationService(database).create(project.id)
    await invoke(history.app, "delete", "--all", "--yes", "--key", project.id, "--database-url", database_url)
    head, *rows = (await invoke(audit.app, "--since", "1h", "--database-url", database_url)).stdout.splitlines()
    assert head.startswith("time\tactor\taction")
    events = [row.split("\t") for row in rows]
    assert [(each[2], each[3]) for each in events] == [
        ("project.created", project.id),
        ("service_account.created", key.account_id),
        ("api_key.created", key.id),
        ("api_key.rotated", key.id),
        ("api_key.deleted", key.id),
        ("history.deleted", project.id),
    ]
    assert {each[1].partition(":")[0] for each in events} == {"cli"}
    assert len((await invoke(audit.app, "--limit", "2", "--database-url", database_url)).stdout.splitlines()) == 3

"""An MCP server with one tool, over standard input and output."""

import json
import sys
from typing import Any

TOOL = {
    "name": "lookup",
    "description": "Looks up what a key opens.",
    "inputSchema": {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
}


def _result(request: dict[str, Any]) -> dict[str, Any]:
    match request["method"]:
        case "initialize":
            version = request["params"]["protocolVersion"]
            about = {"name": "keys", "version": "1"}
            return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}
        case "tools/list":
            return {"tools": [TOOL]}
        case "tools/call":
            text = f"The key {request['params']['arguments']['key']} opens the cellar."
            return {"content": [{"type": "text", "text": text}]}
    return {}


for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        answer = {"jsonrpc": "2.0", "id": asked["id"], "result": _result(asked)}
        print(json.dumps(answer), flush=True)  # noqa: T201

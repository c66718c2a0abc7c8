"""What a model of the Qwen3 kind writes."""

import json


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def thinking(thought: str, then: str) -> str:
    return f"<think>\n{thought}\n</think>\n\n{then}"


def custom_call(name: str, text: str) -> str:
    """Of a tool that is held to a grammar: its text as it is."""
    return f'<tool_call>\n{{"name": "{name}"}}\n{text}</tool_call>'

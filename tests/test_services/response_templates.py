"""Response templates of the kinds that tokenizers bring: some of models' own, some made up."""

from typing import Any

NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
WHOLE = {"type": "function", "function": "{content}"}
THINKING = {"open": "<think>", "close": "</think>"}

COMMAND: dict[str, Any] = {  # Cohere's
    "start_anchor": "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "fields": {
        "thinking": {"open": "<|START_THINKING|>", "close": "<|END_THINKING|>"},
        "content": {"open": "<|START_RESPONSE|>", "close": "<|END_RESPONSE|>"},
        "tool_calls": {
            "open": "<|START_ACTION|>",
            "close": "<|END_ACTION|>",
            "content": "json",
            "transform_each": True,
            "transform": {"type": "function", "function": {"name": "{tool_name}", "arguments": "{parameters}"}},
        },
    },
}
SMOLLM: dict[str, Any] = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": THINKING,
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": WHOLE,
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)"},
    },
}
KEYS: dict[str, Any] = {  # the call's name and arguments under keys of their own, one call only
    "start_anchor": "<assistant>",
    "fields": {
        "tool_calls": {
            "open": "CALL: ",
            "close": "<end>",
            "content": "json",
            "transform": {"function": {"name": "{content.tool}", "arguments": "{content.input}"}},
        },
        "content": {},
    },
}
NAMED_JSON: dict[str, Any] = {
    "start_anchor": "<assistant>",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\[CALL\]to=(?P<tool>[^\n]+)\n",
            "close_pattern": r"\s*\[END\]",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{tool}", "arguments": "{content}"}},
        },
        "content": {"close": "<eot>"},
    },
}
TAGGED: dict[str, Any] = {  # Qwen 3.5's
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": THINKING,
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"},
            "transform": NAMED,
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)"},
    },
}
UNCLOSED: dict[str, Any] = {  # it does not say that the function is closed
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"<call>\s*<fn=(?P<name>\w+)>",
            "close": "</call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<arg=(?P<key>\w+)>(?P<value>.*?)</arg>"},
            "transform": NAMED,
        },
    },
}
GEMMA: dict[str, Any] = {
    "start_anchor": ["<|turn>model\n", "<tool_response|>"],
    "fields": {
        "reasoning_content": {"open": "<|channel>thought\n", "close": "<channel|>"},
        "tool_calls": {
            "open_pattern": r"<\|tool_call>call:(?P<name>\w+)",
            "close": "<tool_call|>",
            "repeats": True,
            "content": "json",
            "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
            "transform": NAMED,
        },
        "content": {"close": ["<turn|>", "<|tool_response>", "<eos>"]},
    },
}
FORCED = {
    "command": COMMAND,
    "smollm": SMOLLM,
    "keys": KEYS,
    "named-json": NAMED_JSON,
    "tagged": TAGGED,
    "unclosed": UNCLOSED,
    "gemma": GEMMA,
}

INVOKE: dict[str, Any] = {  # what opens a call is more than literals
    "start_anchor": "<assistant>",
    "fields": {
        "reasoning_content": {"open_pattern": r"to=self<\|msg\|>", "close": "<|pause|>"},
        "tool_calls": {
            "open_pattern": r'<invoke\b[^>]*?\bname="(?P<name>[^"]+)">',
            "close": "</invoke>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": r'<param\b[^>]*?\bname="(?P<key>[^"]+)"[^>]*?>(?P<value>.*?)</param>',
                "value_parser": {"name": "json", "args": {"allow_non_json": True}},
            },
            "transform": NAMED,
        },
        "content": {"open_pattern": r"to=(?:user|note)<\|msg\|>", "close": ["<|end|>", "<|pause|>"]},
    },
}
LINES: dict[str, Any] = {
    "start_anchor": "<assistant>",
    "fields": {
        "tool_calls": {
            "open_pattern": r"<tool name=(?P<name>\w+)>",
            "close": "</tool>",
            "repeats": True,
            "content": "kv-lines",
            "content_args": {"kv_sep": "="},
            "transform": NAMED,
        },
    },
}
QUOTED: dict[str, Any] = {  # strings between two different marks
    "start_anchor": "<assistant>",
    "fields": {
        "tool_calls": {
            "open": "<<",
            "close": ">>",
            "content": "json",
            "content_args": {"unquoted_keys": True, "string_delims": [["«", "»"]]},
            "transform": {"function": {"name": "{content.name}", "arguments": "{content.args}"}},
        },
    },
}
WHOLE_ONLY = {"invoke": INVOKE, "lines": LINES, "quoted": QUOTED}

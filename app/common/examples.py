"""Examples for the OpenAPI document: of every body, and of every parameter that is needed."""

from typing import Any

QUESTION = "Name the capital of France."
MESSAGES = [{"role": "user", "content": QUESTION}]
CHAT = {"model": "default", "messages": MESSAGES, "max_tokens": 50}
ITEM = {"type": "message", "role": "user", "content": QUESTION}
RESPONSE = {"model": "default", "input": QUESTION}
NAME = {"name": "research"}
LIMITS = {"rpm": 60, "tpm": 100_000}
HUB_MODEL = "Qwen/Qwen3-4B"
FILE_ID = "file-0123456789abcdef0123456789abcdef"
PROJECTS = "/v1/organization/projects"
PROJECT = f"{PROJECTS}/{{project_id}}"

BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/v1/chat/completions"): {**CHAT, "stream": False},
    ("post", "/v1/chat/completions/input_tokens"): {"model": "default", "messages": MESSAGES},
    ("post", "/v1/chat/completions/{completion_id}"): {"metadata": {"topic": "geography"}},
    ("post", "/v1/completions"): {"model": "default", "prompt": "The capital of France is", "max_tokens": 5},
    ("post", "/v1/responses"): {**RESPONSE, "max_output_tokens": 50, "stream": False},
    ("post", "/v1/responses/input_tokens"): RESPONSE,
    ("post", "/v1/responses/compact"): {"model": "default", "input": [ITEM]},
    ("post", "/v1/conversations"): {"title": "Geography", "items": [ITEM]},
    ("post", "/v1/conversations/{conversation_id}"): {"title": "Capitals"},
    ("post", "/v1/conversations/{conversation_id}/items"): {"items": [ITEM]},
    ("post", "/v1/embeddings"): {"model": "default", "input": ["A cat sleeps.", "A kitten naps."]},
    ("post", "/v1/rerank"): {"query": "capital of France", "documents": ["Paris", "Lyon"], "top_n": 1},
    ("post", "/v1/score"): {"text_1": "capital of France", "text_2": ["Paris", "Lyon"]},
    ("post", "/v1/files"): {"purpose": "user_data"},
    ("post", "/v1/uploads"): {
        "bytes": 1024,
        "filename": "requests.jsonl",
        "mime_type": "application/jsonl",
        "purpose": "batch",
    },
    ("post", "/v1/uploads/{upload_id}/parts"): {},
    ("post", "/v1/uploads/{upload_id}/complete"): {"part_ids": ["part_0123456789abcdef"]},
    ("post", "/v1/batches"): {
        "input_file_id": FILE_ID,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    ("post", "/v1/models/{model}/pull"): {"stream": False},
    ("post", "/v1/load_lora_adapter"): {"lora_name": "sql", "lora_path": "/models/sql-lora"},
    ("post", "/v1/unload_lora_adapter"): {"lora_name": "sql"},
    ("post", "/tokenize"): {"prompt": QUESTION},
    ("post", "/detokenize"): {"tokens": [1, 2, 3]},
    ("post", "/chat/new/message/"): {"prompt": QUESTION, "max_tokens": 50},
    ("post", PROJECTS): NAME,
    ("post", PROJECT): NAME,
    ("post", f"{PROJECT}/service_accounts"): {"name": "ci", "expires_in_seconds": 2_592_000},
    ("post", f"{PROJECT}/service_accounts/{{account_id}}"): {"name": "ci"},
    ("post", f"{PROJECT}/service_accounts/{{account_id}}/api_keys"): {"name": "ci", "limits": LIMITS},
    ("post", f"{PROJECT}/api_keys/{{key_id}}"): {"limits": LIMITS},
    ("post", f"{PROJECT}/rate_limits/{{rate_limit_id}}"): {"max_requests_per_1_minute": 60},
    ("post", "/v1/messages"): CHAT,
    ("post", "/v1/messages/count_tokens"): {"model": "default", "messages": MESSAGES},
    ("post", "/api/chat"): {"model": "default", "messages": MESSAGES, "stream": False},
    ("post", "/api/generate"): {"model": "default", "prompt": QUESTION, "stream": False},
    ("post", "/api/embed"): {"model": "default", "input": "A cat sleeps."},
    ("post", "/api/embeddings"): {"model": "default", "prompt": "A cat sleeps."},
    ("post", "/api/show"): {"model": "default"},
    ("post", "/api/pull"): {"model": HUB_MODEL, "stream": False},
    ("delete", "/api/delete"): {"model": HUB_MODEL},
    ("post", "/predict"): {"input": QUESTION, "max_tokens": 50},
}

PARAMETERS: dict[str, Any] = {
    "query": "capital",
    "conversation_id": "conv_0123456789abcdef0123456789abcdef",
    "item_id": "msg_0123456789abcdef",
    "message_id": "0123456789abcdef0123456789abcdef",
    "completion_id": "chatcmpl-0123456789abcdef0123456789abcdef",
    "response_id": "resp_0123456789abcdef0123456789abcdef",
    "file_id": FILE_ID,
    "upload_id": "upload_0123456789abcdef",
    "batch_id": "batch_0123456789abcdef",
    "model": "default",
    "start_time": 1_767_225_600,
    "project_id": "proj_0123456789abcdef",
    "account_id": "svc_acct_0123456789abcdef",
    "key_id": "key_0123456789abcdef",
    "rate_limit_id": "rl-default",
}


def add(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for parameter in operation.get("parameters", ()):
                if parameter.get("required") and parameter["name"] in PARAMETERS:
                    parameter["example"] = PARAMETERS[parameter["name"]]
            body = BODIES.get((method, path))
            if body:
                for content in operation["requestBody"]["content"].values():
                    content["example"] = body

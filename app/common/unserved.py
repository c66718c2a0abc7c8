"""Paths of OpenAI's and Anthropic's APIs that are not served, so that their 404 can say so."""

import re

# First part of a path in OpenAI's API, by which its client's resources begin -> topic of the resource.
OPENAI: dict[str, str] = {
    "agents": "hosted agents",
    "assistants": "assistants: use '/v1/responses' with '/v1/conversations'",
    "audio": "speech and transcription: answers are text",
    "chatkit": "ChatKit sessions",
    "containers": "containers that run code",
    "content_provenance_checks": "checks of where content comes from",
    "decisions": "decisions",
    "evals": "evaluations",
    "fine_tuning": "training",
    "images": "making images: answers are text",
    "live": "live sessions",
    "moderations": "moderation",
    "projects": "roles of projects: '/v1/organization/projects' is served",
    "realtime": "speech over WebSocket or WebRTC",
    "safety": "safety alerts and cases",
    "skills": "skills",
    "threads": "assistants' threads: use '/v1/conversations'",
    "vaults": "vaults of hosted agents",
    "vector_stores": "stores of vectors: '/v1/embeddings' and '/v1/rerank' are served",
    "videos": "making videos: answers are text",
    "webhook_endpoints": "webhooks",
    "webhook_event_types": "webhooks",
}
OTHERS: dict[str, str] = {
    "/v1/complete": "Anthropic's text completions: use '/v1/messages'",
    "/v1/messages/batches": "batches of messages",
    "/v1/organization/users": "users: keys belong to service accounts",
    "/v1/organization/invites": "users: keys belong to service accounts",
    "/v1/organization/costs": "costs: tokens are counted, and not what they cost",
}
FIRST_PART = re.compile(r"(?:/v1)?/([a-z_]+)(?=/|$)")


def reason(path: str) -> str | None:
    """The topic of a known path that is not served; None for any other path."""
    if other := next((OTHERS[known] for known in OTHERS if path == known or path.startswith(known + "/")), None):
        return other
    found = FIRST_PART.match(path)
    return OPENAI.get(found[1]) if found else None

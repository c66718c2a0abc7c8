"""The catalogue of models as Codex reads it from `GET /v1/models`: `models`, beside OpenAI's `data`."""

from typing import Literal

from pydantic import BaseModel


class ReasoningLevel(BaseModel):
    effort: Literal["low", "medium", "high"]
    description: str


class TruncationPolicy(BaseModel):
    """Of what a tool has answered."""

    mode: Literal["tokens"] = "tokens"
    limit: int


class CodexModel(BaseModel):
    """Its client takes none of these fields to be absent, and passes over those that it does not know."""

    slug: str
    display_name: str
    description: str | None = None
    default_reasoning_level: Literal["medium"] | None
    supported_reasoning_levels: list[ReasoningLevel]
    shell_type: Literal["unified_exec"] = "unified_exec"
    visibility: Literal["list"] = "list"
    supported_in_api: bool = True
    priority: int  # in the picker, the lowest first
    upgrade: None = None
    availability_nux: None = None
    base_instructions: str
    model_messages: None = None
    supports_reasoning_summaries: bool
    supports_reasoning_summary_parameter: bool
    default_reasoning_summary: Literal["auto", "none"]
    support_verbosity: bool = False
    default_verbosity: None = None
    apply_patch_tool_type: Literal["freeform"] = "freeform"
    web_search_tool_type: Literal["text"] = "text"
    truncation_policy: TruncationPolicy
    supports_parallel_tool_calls: bool = True
    supports_image_detail_original: bool = False
    context_window: int | None
    max_context_window: int | None
    effective_context_window_percent: int = 95
    experimental_supported_tools: list[str] = []
    input_modalities: list[str]
    supports_search_tool: bool = True

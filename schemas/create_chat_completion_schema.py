"""The body of OpenAI's route for chat completions."""

from pydantic import field_validator

from schemas.chat_schema import ChatCompletionRequest
from schemas.openai_limits_schema import OpenAILimits
from schemas.request_schema import Unserved, fault
from schemas.tool_schema import CustomTool, Tool

MAX_TOOLS = 128
MAX_NAME = 64  # characters of a function's


class CreateChatCompletionRequest(OpenAILimits, ChatCompletionRequest):
    @field_validator("tools")
    @classmethod
    def _are_within_limits(cls, tools: list[Tool | CustomTool | Unserved]) -> list[Tool | CustomTool | Unserved]:
        if len(tools) > MAX_TOOLS:
            raise ValueError(f"at most {MAX_TOOLS} tools are taken")
        for index, tool in enumerate(tools):
            if isinstance(tool, Tool) and len(tool.function.name) > MAX_NAME:
                raise fault(f"at most {MAX_NAME} characters are taken", index, "function", "name")
            if isinstance(tool, CustomTool) and len(tool.custom.name) > MAX_NAME:
                raise fault(f"at most {MAX_NAME} characters are taken", index, "custom", "name")
        return tools

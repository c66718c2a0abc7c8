"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, in vLLM's shapes."""

from typing import ClassVar

from pydantic import Field, StrictInt

from schemas.request_schema import Hints, Request


class LoadAdapter(Request):
    lora_name: str = Field(min_length=1, max_length=200)
    lora_path: str = Field(min_length=1, max_length=4096, description="a folder of PEFT's on the server's machine")
    load_inplace: bool = Field(False, description="in place of an adapter with the same name")
    model: str | None = Field(None, description="the model that it changes; none: the default chat model")


class UnloadAdapter(Request):
    lora_name: str = Field(min_length=1, max_length=200)
    lora_int_id: StrictInt | None = None  # vLLM's own number; the name is what an adapter is found by

    HINTS: ClassVar[Hints] = {"lora_int_id": ()}

"""Kinds of servers that take and give token ids, by name."""

from services.engine.remote.kinds.base import Kind
from services.engine.remote.kinds.llama_cpp import LlamaCpp
from services.engine.remote.kinds.parley import Parley
from services.engine.remote.kinds.sglang import SGLang
from services.engine.remote.kinds.vllm import VLLM

KINDS: dict[str, Kind] = {kind.name: kind for kind in (VLLM(), SGLang(), LlamaCpp(), Parley())}


def kind_of(owned_by: str) -> Kind | None:
    """By the owner that its list of models names."""
    return next((kind for kind in KINDS.values() if kind.owned_by == owned_by), None)

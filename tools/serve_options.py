"""The options of `parley serve`: each is a setting of the app, which reads it from the environment."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Annotated, Any, TypeAlias

import typer

Chosen: TypeAlias = str | float | None


@dataclass(frozen=True, slots=True)
class ServeOption:
    type: type[str | float]
    setting: str  # without PARLEY_
    default: str  # as the help shows it
    help: str
    value: Callable[[Any], Chosen] = lambda given: given  # of the setting


OPTIONS = {
    "model": ServeOption(str, "MODEL__NAME", "the default model", "A local folder, a GGUF file or a hub name."),
    "host": ServeOption(str, "SERVER__HOST", "127.0.0.1", "The address to listen on."),
    "port": ServeOption(int, "SERVER__PORT", "8000", "The port to listen on."),
    "metrics_port": ServeOption(int, "SERVER__METRICS_PORT", "none", "A separate port for /metrics, without keys."),
    "workers": ServeOption(int, "SERVER__WORKERS", "1", "Processes, each with its own models; needs PostgreSQL."),
    "replicas": ServeOption(
        int, "SERVER__REPLICAS", "1", "Processes behind one front, by conversation and load; on PostgreSQL."
    ),
    "max_model_len": ServeOption(
        int, "ENGINE__MAX_MODEL_LEN", "the model's", "Maximum tokens of prompt and answer together."
    ),
    "max_num_seqs": ServeOption(int, "ENGINE__MAX_NUM_SEQS", "32", "Maximum sequences in a batch."),
    "max_num_batched_tokens": ServeOption(
        int, "ENGINE__MAX_NUM_BATCHED_TOKENS", "512", "Maximum tokens of an engine step."
    ),
    "block_size": ServeOption(int, "ENGINE__BLOCK_SIZE", "1", "Tokens of a KV cache block."),
    "num_gpu_blocks_override": ServeOption(
        int, "ENGINE__NUM_GPU_BLOCKS_OVERRIDE", "from the memory", "Number of KV cache blocks."
    ),
    "kv_cache_ratio": ServeOption(
        float, "ENGINE__KV_CACHE_RATIO", "1", "Share of the KV cache in which prompts are admitted."
    ),
    "kv_cache_dtype": ServeOption(
        str, "ENGINE__KV_CACHE_DTYPE", "auto", "Numbers of the KV cache: auto, as the model has; int8."
    ),
    "gpu_memory_utilization": ServeOption(
        float, "ENGINE__GPU_MEMORY_UTILIZATION", "0.9", "Share of a GPU's memory to use."
    ),
    "cpu_memory_share": ServeOption(
        float, "ENGINE__CPU_MEMORY_SHARE", "0.4", "Share of the free RAM for the KV cache."
    ),
    "enable_prefix_caching": ServeOption(
        bool, "ENGINE__PREFIX_CACHE", "on", "Reuse the KV cache of common prompt prefixes."
    ),
    "speculation": ServeOption(bool, "ENGINE__SPECULATION", "on", "Speculative decoding by prompt lookup."),
    "use_warmup": ServeOption(bool, "ENGINE__USE_WARMUP", "off", "Run a full step when a model is loaded."),
    "tensor_parallel_size": ServeOption(
        int, "ENGINE__TENSOR_PARALLEL_SIZE", "1", "Processes that a model is split over."
    ),
    "quantization": ServeOption(
        str,
        "ENGINE__QUANTIZATION",
        "as the file is",
        "int8, int4: weights of so many bits; none: quantised files are expanded.",
    ),
    "enable_mm": ServeOption(
        bool, "ENGINE__ENABLE_MM", "where the model takes them", "Require or disable image input."
    ),
    "lazy": ServeOption(
        bool, "MODEL__PRELOAD", "off", "Load the model at its first request instead of at start.", operator.not_
    ),
    "config": ServeOption(str, "CONFIG", "parley.toml if there is one", "A file of settings (parley config)."),
}


def taken(command: Callable[..., None]) -> Callable[..., None]:
    """The command with these options as its parameters, where typer finds them."""
    hints = {name: _annotation(option) for name, option in OPTIONS.items()}
    command.__annotations__ = {**hints, "return": None}
    command.__dict__["__signature__"] = Signature(
        [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=hint) for name, hint in hints.items()]
    )
    return command


def _annotation(option: ServeOption) -> Any:
    return Annotated[option.type | None, typer.Option(show_default=option.default, help=option.help)]


def settings(chosen: Mapping[str, Chosen]) -> dict[str, Chosen]:
    """By the names of the environment; None: not chosen."""
    return {
        f"PARLEY_{option.setting}": None if chosen[name] is None else option.value(chosen[name])
        for name, option in OPTIONS.items()
    }

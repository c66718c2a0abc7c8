"""All settings, from the environment (prefix PARLEY_, groups joined by "__"), `.env` and `parley.toml`.

Read in main and tools."""

import hashlib
import logging
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import from_json
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.common import setting_names
from app.common.config_file import ConfigFile
from schemas.sampling_schema import SamplingSettings
from services.chat.formats import TOOL_FORMATS, syntax_error
from services.engine.quantization import METHODS, UNQUANTIZED


def _split(value: object) -> object:
    """A list, as JSON like all others, or comma-separated."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return from_json(value)
    return [each.strip() for each in value.split(",") if each.strip()]


def _quantization_method(name: str) -> str:
    known = (*METHODS, UNQUANTIZED)
    if name not in known:
        raise ValueError(f"the methods are: {', '.join(known)}")
    return name


Quantization = Annotated[
    str, AfterValidator(_quantization_method), WithJsonSchema({"type": "string", "enum": [*METHODS, UNQUANTIZED]})
]


def _tool_format(name: str) -> str:
    if name not in TOOL_FORMATS:
        raise ValueError(f"the formats are: {', '.join(TOOL_FORMATS)}")
    return name


ToolFormatName = Annotated[
    str, AfterValidator(_tool_format), WithJsonSchema({"type": "string", "enum": [*TOOL_FORMATS]})
]


def _chat_template(path: Path) -> Path:
    try:
        problem = syntax_error(path.read_text("utf-8"))
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    if problem:
        raise ValueError(f"{path} is no Jinja template: {problem}")
    return path


class SettingsGroup(BaseModel):
    """A group that is set in part keeps the defaults of its other fields. Docstrings become docs/settings.md."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)


class UpstreamSettings(SettingsGroup):
    """A server that computes for the engine `remote`."""

    url: Annotated[str, Field(pattern=r"^https?://[^/@\s]+(/[^@\s]*)?$")]
    key: SecretStr | None = None
    kind: Literal["vllm", "sglang", "llama.cpp", "parley"] | None = None
    model: str | None = None


def _upstream(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class ModelSettings(SettingsGroup):
    """A model that is served."""

    name: str = "default"
    """A folder, a hub name, a GGUF file, `owner/name:Q4_K_M` of one that was pulled, or `default`:
    SmolLM2-135M-Instruct, and all-MiniLM-L6-v2 for embeddings."""
    id: str | None = None
    """The name that requests use. Unset: derived from `NAME`."""
    kind: Literal["chat", "embedding", "reranker"] = "chat"
    """What the model does; to be set for further models only."""
    engine: str = "local"
    """The engine that runs it: `local`, `remote` (the servers of `UPSTREAMS`; only the tokenizer of `NAME` is read), or
    `package.module:Class` of another package."""
    engine_options: dict[str, Any] = {}
    """Options of that engine, as a JSON object. Of `remote`: `timeout_s`, seconds without a byte (300)."""
    upstreams: list[Annotated[UpstreamSettings, BeforeValidator(_upstream)]] = []
    """Servers of the engine `remote`, as a JSON list: addresses, or objects with `url` and some of `key`, `kind`
    (`vllm`, `sglang`, `llama.cpp`, `parley`; unset: found out) and `model` (its name there; unset: the first)."""
    device: str = "auto"
    """`auto`: CUDA if available."""
    dtype: str = "auto"
    """`auto`: bfloat16 if the hardware supports it."""
    quantization: Quantization | None = None
    """Weight quantization on the CPU; `int8` for embedding models and rerankers. Unset: a chat model has the engine's
    (`ENGINE__QUANTIZATION`)."""
    preload: bool = False
    """Loads the model at start; the service is not ready before. Else it is loaded at its first request."""
    pinned: bool = False
    """Never unloads the model."""
    ttl_s: float | None = Field(None, gt=0)
    """Idle seconds until the model is unloaded. Unset: never."""
    dialect: ToolFormatName | None = None
    """The format of tool calls. Unset: detected in the chat template."""
    chat_template: Annotated[Path, AfterValidator(_chat_template)] | None = None
    """A Jinja file in place of the model's own chat template. Formats of calls and thinking are detected in it."""
    trust_remote_code: bool = False
    """Runs the code that a model brings along, with all rights of this process, where transformers has none of its
    kind. Read it before."""
    adapters: dict[str, str] = {}
    """LoRA adapters that requests name as `model`, as a JSON object of names and folders of PEFT's. Others are loaded
    by `POST /v1/load_lora_adapter`."""
    sampling: SamplingSettings | None = None
    """Sampling defaults instead of those in `generation_config.json`, as a JSON object with some of `temperature`,
    `top_p`, `top_k`, `min_p`, `repetition_penalty`. `{}`: the defaults of OpenAI's API."""

    @model_validator(mode="after")
    def _is_named(self) -> "ModelSettings":
        if self.kind == "reranker" and self.name == "default":
            raise ValueError("there is no default model for reranking: give its name")
        return self

    @model_validator(mode="after")
    def _has_chats(self) -> "ModelSettings":
        if self.kind != "chat" and self.chat_template:
            raise ValueError(f"CHAT_TEMPLATE goes with models of kind chat, not {self.kind}")
        return self

    @model_validator(mode="after")
    def _runs_code(self) -> "ModelSettings":
        if self.trust_remote_code and (self.kind == "reranker" or self.engine == "remote"):
            raise ValueError("TRUST_REMOTE_CODE goes with models of kind chat and embedding that are computed here")
        return self

    @model_validator(mode="after")
    def _takes_adapters(self) -> "ModelSettings":
        if self.adapters and (self.kind != "chat" or self.engine == "remote"):
            raise ValueError("ADAPTERS go with models of kind chat that are computed here")
        return self

    @model_validator(mode="after")
    def _has_upstreams(self) -> "ModelSettings":
        if self.engine == "remote" and not self.upstreams:
            raise ValueError("the engine 'remote' needs UPSTREAMS: a JSON list of addresses")
        if self.engine == "local" and self.upstreams:
            raise ValueError("UPSTREAMS go with the engine 'remote'")
        return self


class DefaultModelSettings(ModelSettings):
    """The chat model."""

    preload: bool = True
    """Loads the model at start; the service is not ready before. `false` (`--lazy`): at the first request."""
    aliases: dict[str, str] = {}
    """Further names, as a JSON object: `{"gpt-4o": "default"}`. `"*"` matches every unknown name."""


class EmbeddingModelSettings(ModelSettings):
    """The embedding model: the same settings as `PARLEY_MODEL__…`, except `ALIASES`."""

    kind: Literal["chat", "embedding", "reranker"] = "embedding"


class EngineSettings(SettingsGroup):
    """The engine of chat models."""

    max_model_len: int | None = Field(None, ge=16)
    """Maximum tokens of prompt and answer together. Unset: the model's own limit."""
    max_num_seqs: int = Field(32, ge=1)
    """Maximum sequences in a batch."""
    max_num_batched_tokens: int = Field(512, ge=1)
    """Maximum tokens computed in one step; longer prompts are prefilled in chunks."""
    compile: bool = True
    """Compiles the engine's steps in the background (CPU; needs a C++ compiler). Results are cached in `MODELS_DIR`."""
    speculation: bool = True
    """Speculative decoding by prompt lookup: up to 16 draft tokens are verified in one step. The text is the same."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory to use, weights included."""
    cpu_memory_share: float = Field(0.4, gt=0, le=1)
    """Share of the free RAM that the KV cache may take."""
    num_gpu_blocks_override: int | None = Field(None, ge=1)
    """Number of KV cache blocks. Unset: what the memory allows."""
    block_size: int = Field(1, ge=1)
    """Tokens of a KV cache block."""
    kv_cache_ratio: float = Field(1, gt=0, le=1)
    """Share of the KV cache in which new prompts are admitted; the rest is for running answers to grow."""
    kv_cache_dtype: Literal["auto", "int8"] = "auto"
    """Numbers of the KV cache: `auto`, as the model computes; `int8`, half the memory (CPU; docs/engine.md)."""
    prefix_cache: bool = True
    """Reuses the KV cache of common prompt prefixes: those of the same API key, and the server's own system prompt."""
    share_prefixes: bool = False
    """Reuses prefixes across API keys: `cached_tokens` and timing then reveal to one key what others have sent."""
    use_warmup: bool = False
    """Runs a full step when a model is loaded, so that no request pays for first-use costs."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Processes that a chat model is split over: a GPU each, or shares of the CPU's cores (docs/scaling.md)."""
    quantization: Quantization | None = None
    """Weight quantization on the CPU: `int8` or `int4` (docs/models.md). Unset: weights in `DTYPE`; those of a GGUF
    file or a quantised checkpoint in their own blocks, unless a `DTYPE` is set. `none`: they are expanded."""
    enable_mm: bool | None = None
    """Image input: `true` requires it at load, `false` rejects images. Unset: enabled where the model supports it."""
    max_queue: int = Field(256, ge=0)
    """Maximum waiting requests; more get 429 with Retry-After, except from API keys below their fair share."""


class ChatSettings(SettingsGroup):
    """Chat completions and responses."""

    system_prompt: str | None = None
    """Prepended to requests without a system prompt."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Token limit of an answer if the request sets none. Unset: the rest of the context."""
    checkpoint_s: float = Field(5, gt=0)
    """Interval at which running answers are saved, in seconds."""


class ImageSettings(SettingsGroup):
    """Image input."""

    max_images: int = Field(16, ge=1)
    """Maximum images of a request, those of its conversation included."""
    max_bytes: int = Field(10 * 1024 * 1024, ge=1024)
    """Maximum encoded bytes of an image."""
    max_pixels: int = Field(32 * 1024 * 1024, ge=1024)
    """Maximum pixels of an image."""
    max_held_bytes: int = Field(1024 * 1024 * 1024, ge=1024)
    """Maximum memory of the decoded images of all running requests; more get 429, except API keys below their share."""
    hosts: list[str] = []
    """Hosts whose images and files are fetched by URL, at public addresses only, as a JSON list. `["*"]`: any host."""
    timeout_s: float = Field(10, gt=0)
    """Timeout for fetching one image or file, redirects included, in seconds."""


class DatabaseSettings(SettingsGroup):
    """Conversations and stored answers."""

    url: str = "sqlite+aiosqlite:///parley.db"
    """An SQLite file, or `postgresql+asyncpg://user:password@host/name`."""
    migrate: bool = True
    """Upgrades the schema at start; safe with several processes."""
    ttl_s: float | None = Field(None, ge=60)
    """Seconds after which unused conversations and stored answers are deleted. Unset: never."""


URL_START = re.compile(r"[a-z][a-z0-9+.-]*://.", re.ASCII)


class FileSettings(SettingsGroup):
    """Files of `/v1/files`."""

    folder: Path | None = None
    """Folder of their contents; processes that share a database share it, too. Unset: beside an SQLite database, named
    after it (`parley-files`), else `parley-files` in the working directory."""
    url: str | None = None
    """An object store in place of the folder, by fsspec: `s3://bucket/prefix` (the extra `s3`), or the URL of another
    fsspec package."""
    options: dict[str, Any] = {}
    """Options of fsspec's file system for that URL, as a JSON object: `{"endpoint_url": "http://minio:9000"}`. S3's
    credentials are better left to `AWS_ACCESS_KEY_ID` and the like."""
    max_bytes: int = Field(200 * 1024 * 1024, ge=1024)
    """Maximum bytes of a file; more get 413."""
    max_upload_bytes: int = Field(8 * 1024 * 1024 * 1024, ge=1024)
    """Maximum bytes of a file that is uploaded in parts (`/v1/uploads`); more get 413."""
    max_input_bytes: int = Field(32 * 1024 * 1024, ge=1024)
    """Maximum bytes of a file in a message."""
    max_total_bytes: int = Field(10 * 1024 * 1024 * 1024, ge=1024)
    """Maximum bytes of all files of a project, or of a key of the settings, together."""

    @model_validator(mode="after")
    def _is_one_store(self) -> "FileSettings":
        if self.url is not None and not URL_START.match(self.url):
            raise ValueError("URL must be one such as s3://bucket/prefix")
        if self.url is not None and self.folder is not None:
            raise ValueError("FOLDER and URL exclude each other")
        if self.options and self.url is None:
            raise ValueError("OPTIONS go with URL")
        return self


class BatchSettings(SettingsGroup):
    """Batches of `/v1/batches`."""

    max_requests: int = Field(50_000, ge=1)
    """Maximum requests of a batch."""
    parallel: int = Field(256, ge=1)
    """Maximum requests of batches that a process runs at once; as many as keep its engines full are run."""


class RecordSettings(SettingsGroup):
    """Records that are kept for the operator."""

    usage_days: int = Field(400, ge=1)
    """Days that usage (by hour, key and model) is kept."""
    audit_days: int = Field(400, ge=1)
    """Days that the audit log is kept."""


HOST_NAME = re.compile(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*|[0-9a-f:.]+", re.ASCII | re.IGNORECASE)


def _host_name(value: str) -> str:
    if not HOST_NAME.fullmatch(value):
        raise ValueError("must be a name such as chat.example.org or *.example.org, without scheme, port and path")
    return value


class ServerSettings(SettingsGroup):
    """The HTTP server."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on. `0`: a free one."""
    allowed_hosts: Annotated[list[Annotated[str, AfterValidator(_host_name)]], NoDecode, BeforeValidator(_split)] = []
    """Further host names accepted while there are no API keys, comma-separated; `*.` matches subdomains, `*` any."""
    allowed_pulls: Annotated[list[str], NoDecode, BeforeValidator(_split)] = []
    """Models of a hub that administrators may pull and delete over HTTP, comma-separated, `*` matches any characters:
    `Qwen/*`. Those that are in the hub's cache are served, too, loaded at their first request. Unset: none."""
    metrics_port: int | None = Field(None, ge=1, le=65535)
    """A separate port for /metrics, which needs no key there. Unset: none."""
    workers: int = Field(1, ge=1)
    """Processes, each with its own models. More than one need PostgreSQL."""
    replicas: int = Field(1, ge=1)
    """Processes with their own models behind one front, by conversation and load (`--replicas`). They share PostgreSQL;
    where no database is named one is started, with its data in the folder `parley-postgres`."""
    max_body_bytes: int = Field(16 * 1024 * 1024, ge=1024)
    """Maximum bytes of a body, compressed and decompressed (gzip, deflate); more get 413."""
    max_tokenize_chars: int = Field(1024 * 1024, ge=1024)
    """Maximum characters of a text whose tokens are only counted or listed, or 8 for each token of the context."""
    keepalive_s: float = Field(5, gt=0)
    """Interval of keep-alive comments on a silent stream, in seconds."""
    send_timeout_s: float = Field(60, gt=0)
    """Seconds after which a stream is closed whose client reads nothing."""
    headers_timeout_s: float = Field(10, gt=0)
    """Timeout for a connection's first request, and for the headers of every request, in seconds."""
    body_timeout_s: float = Field(20, gt=0)
    """Timeout between two bytes of a body, and base timeout of the whole body, in seconds."""
    body_rate: float = Field(500, gt=0)
    """Bytes per second by which the timeout of a whole body grows."""
    max_connections: int | None = Field(None, ge=1)
    """Maximum connections of a process; more close the longest silent one, or get 503. Unset: from `ulimit -n`."""
    secret: str | None = Field(None, min_length=16, max_length=1024)
    """Derives the keys that encrypt reasoning and summaries kept by clients; the same on all replicas. Unset: random,
    stored in the database."""
    token_ttl_s: int = Field(3600, gt=0)
    """Lifetime of tokens for `/chat/stream`, in seconds."""
    predict_path: str = "/predict"
    """Path of the plain endpoint. Empty: none."""
    drain_s: float = Field(30, ge=0)
    """Seconds that running answers may take after SIGTERM or SIGHUP."""


class CorsSettings(SettingsGroup):
    """Cross-origin requests."""

    origins: list[str] = []
    """Origins of web pages that may call the server, as a JSON list. `["*"]`: any."""


class LogSettings(SettingsGroup):
    """Logging. Prompts and answers are not logged at any level."""

    level: str = "INFO"
    """`DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`."""
    format: Literal["text", "json"] = "text"
    """Text lines, or a JSON object per line."""

    @field_validator("level")
    @classmethod
    def _is_a_level(cls, value: str) -> str:
        levels = logging.getLevelNamesMapping()
        if value.upper() not in levels:
            raise ValueError(f"expected one of {', '.join(levels)}")
        return value


class ApiKey(BaseModel):
    """Kept as a hash. `owner` owns the key's conversations; it is derived from the key, the same on every replica."""

    digest: bytes

    @property
    def owner(self) -> str:
        return "key_" + self.digest.hex()[:24]


def _api_keys(value: object) -> object:
    listed = _split(value)
    if not isinstance(listed, list):
        raise ValueError("must be keys with commas between them, or a JSON list of them")
    # an empty variable is what a missing secret leaves behind: it must not open the server
    if isinstance(value, str) and not listed:
        raise ValueError("is set, but there is no key in it: unset it to let everybody in")
    return [api_key(each) if isinstance(each, str) else each for each in listed]


def api_key(text: str) -> ApiKey:
    """A key, or `sha256:` and its digest in hexadecimal."""
    text = text.strip()
    if not text:
        raise ValueError("has an empty key in it: every caller would have that one")
    scheme, _, digest = text.partition(":")
    if scheme == "sha256":
        if not re.fullmatch("[0-9a-fA-F]{64}", digest):
            raise ValueError("after sha256: come 64 hexadecimal digits")
        return ApiKey(digest=bytes.fromhex(digest))
    return ApiKey(digest=hashlib.sha256(text.encode()).digest())


def _admin_key(value: object) -> object:
    return api_key(value) if isinstance(value, str) else value


class UnknownSettings(ValueError): ...


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="PARLEY_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
        env_file=".env",
        extra="ignore",
        protected_namespaces=(),
        hide_input_in_errors=True,  # the input has keys and passwords
    )

    model: DefaultModelSettings = DefaultModelSettings()
    embedding: EmbeddingModelSettings = EmbeddingModelSettings()
    models: list[ModelSettings] = []
    """Further models, as a JSON list of objects with the settings of `PARLEY_MODEL__…` in lower case and `kind`."""
    models_dir: Path = Path("models")
    """Folder of the default models and of compiled code."""
    engine: EngineSettings = EngineSettings()
    chat: ChatSettings = ChatSettings()
    images: ImageSettings = ImageSettings()
    database: DatabaseSettings = DatabaseSettings()
    files: FileSettings = FileSettings()
    batches: BatchSettings = BatchSettings()
    records: RecordSettings = RecordSettings()
    server: ServerSettings = ServerSettings()
    cors: CorsSettings = CorsSettings()
    log: LogSettings = LogSettings()
    api_keys: Annotated[list[ApiKey], NoDecode, BeforeValidator(_api_keys)] = []
    """Accepted API keys, comma-separated: the keys, or `sha256:` and their digests. Unset: no key is needed. Set but
    empty is an error."""
    admin_key: Annotated[ApiKey, BeforeValidator(_admin_key)] | None = None
    """A key with the role `admin`: it manages projects, keys and models over HTTP, and is accepted as any other. A key,
    or `sha256:` and its digest. `parley keys` makes keys that are kept in the database."""
    specs: list[str] = ["anthropic", "ollama"]
    """Further protocols, as a JSON list: shipped ones by name, others as `package.module:Class`."""
    strict: bool = False
    """Rejects unknown keys of bodies and queries instead of naming them in `x-parley-ignored`."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource, **named: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The default sources, and `parley.toml` behind them; unknown names in any of them are rejected.

        `_env_file=None` leaves out both files."""
        chosen = (*sources, *named.values())
        if any(isinstance(source, DotEnvSettingsSource) and source.env_file for source in chosen):
            chosen = (*chosen, ConfigFile(settings_cls))
        values = {
            k: v for source in chosen if isinstance(source, EnvSettingsSource) for k, v in source.env_vars.items()
        }
        if refusals := setting_names.refusals(cls, values):
            raise UnknownSettings("\n".join(refusals))
        return chosen

    @model_validator(mode="after")
    def _can_be_several(self) -> "Settings":
        if self.server.workers > 1 and self.database.url.startswith("sqlite"):
            raise ValueError("several workers share one history: PARLEY_SERVER__WORKERS > 1 needs PostgreSQL")
        if self.server.workers > 1 and self.server.metrics_port is not None:
            raise ValueError("several workers cannot share PARLEY_SERVER__METRICS_PORT")
        return self

    @model_validator(mode="after")
    def _can_have_replicas(self) -> "Settings":
        server = self.server
        if server.replicas == 1:
            return self
        if server.workers > 1 or server.metrics_port is not None:
            raise ValueError("PARLEY_SERVER__REPLICAS > 1 goes without WORKERS and METRICS_PORT: /metrics has them all")
        if self.has_named_database and self.database.url.startswith("sqlite"):
            raise ValueError("several replicas share one history: PARLEY_SERVER__REPLICAS > 1 needs PostgreSQL")
        return self

    @property
    def has_named_database(self) -> bool:
        return "url" in self.database.model_fields_set

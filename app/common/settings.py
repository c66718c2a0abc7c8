"""All settings, from the environment (PARLEY_ in front, groups joined by "__") and `.env`. Read in main and tools."""

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
    field_validator,
    model_validator,
)
from pydantic_core import from_json
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.common import setting_names
from schemas.sampling_schema import SamplingSettings


def _split(value: object) -> object:
    """A list, as JSON like every other one, or its items with commas between them."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return from_json(value)
    return [each.strip() for each in value.split(",") if each.strip()]


class Group(BaseModel):
    """Its defaults are its class's own: one that is set in part keeps the others."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class ModelSettings(Group):
    name: str = "default"  # folder, hub name, GGUF file, or "default"
    id: str | None = None  # what requests call it; None: made from the name
    kind: Literal["chat", "embedding", "reranker"] = "chat"
    engine: str = "local"  # what runs it: this package's own, or package.module:Class
    engine_options: dict[str, Any] = {}  # of an engine's own, which its `load` has parameters for
    device: str = "auto"  # cuda where there is one
    dtype: str = "auto"  # bfloat16 where the hardware has it
    preload: bool = False  # at start, instead of at the first request; the service is ready when it is loaded
    pinned: bool = False  # never freed
    ttl_s: float | None = Field(None, gt=0)  # idle seconds until it is freed; unset: never
    # how it writes tool calls; unset: as its chat template shows
    dialect: Literal["hermes", "llama", "mistral", "mistral-args", "json"] | None = None

    # where requests name nothing; unset: as the model's authors recommend, {}: as OpenAI's API says
    sampling: SamplingSettings | None = None

    @model_validator(mode="after")
    def _is_named(self) -> "ModelSettings":
        if self.kind == "reranker" and self.name == "default":
            raise ValueError("there is no default model for reranking: give its name")
        return self


class DefaultModelSettings(ModelSettings):
    preload: bool = True
    aliases: dict[str, str] = {}  # other name -> model; "*" stands for every unknown name


class EmbeddingModelSettings(ModelSettings):
    kind: Literal["chat", "embedding", "reranker"] = "embedding"


class EngineSettings(Group):
    max_model_len: int | None = Field(None, ge=16)  # tokens of prompt and answer; unset: the model's own
    max_num_seqs: int = Field(32, ge=1)  # sequences in the batch
    max_num_batched_tokens: int = Field(512, ge=1)  # tokens computed in one step
    compile: bool = True  # on the CPU, in the background, kept under models_dir
    speculation: bool = True  # guess how answers go on and check several tokens in one step; no other text for it
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)  # of a GPU's memory, weights and all
    cpu_memory_share: float = Field(0.4, gt=0, le=1)  # of the free RAM, for keys and values
    num_gpu_blocks_override: int | None = Field(None, ge=1)  # blocks of the cache, whatever the memory would allow
    block_size: int = Field(1, ge=1)  # tokens by which the cache is counted and shared
    kv_cache_ratio: float = Field(1, gt=0, le=1)  # of the cache, that may be taken when a prompt is let in
    prefix_cache: bool = True  # prompts that begin like an earlier one of the same key begin with what it left
    share_prefixes: bool = False  # or of any key: count and timing then tell one key what another has asked
    use_warmup: bool = False  # a full step at load, so that no request pays for what is done at first use
    tensor_parallel_size: int = 1
    quantization: Literal["int8"] | None = None  # of the weights, on the CPU; unset: in dtype
    enable_mm: bool | None = None  # images; unset: where the model takes them
    max_queue: int = Field(256, ge=0)  # requests that may wait beyond those in the batch

    @field_validator("tensor_parallel_size")
    @classmethod
    def _is_one(cls, value: int) -> int:
        if value != 1:
            raise ValueError("a model is not split over several devices; run an instance for each, behind one address")
        return value


class ChatSettings(Group):
    system_prompt: str | None = None  # put in front where a request has none
    max_new_tokens: int | None = Field(None, ge=1)  # where a request sets no limit; unset: the model's length
    checkpoint_s: float = Field(5, gt=0)  # how often a running answer is saved


class ImageSettings(Group):
    max_images: int = Field(16, ge=1)  # in one request, its conversation included
    max_bytes: int = Field(10 * 1024 * 1024, ge=1024)  # of each, as it comes
    max_pixels: int = Field(32 * 1024 * 1024, ge=1024)  # of each
    max_held_bytes: int = Field(1024 * 1024 * 1024, ge=1024)  # of all that are being answered, as models take them
    hosts: list[str] = []  # whose images are fetched, at public addresses only; ["*"]: anybody's
    timeout_s: float = Field(10, gt=0)  # for one image, redirects and all


class DatabaseSettings(Group):
    url: str = "sqlite+aiosqlite:///parley.db"
    migrate: bool = True  # bring the schema up to date at start
    ttl_s: float | None = Field(None, ge=60)  # what was not used for so long is deleted; unset: never


HOST_NAME = re.compile(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*|[0-9a-f:.]+", re.ASCII | re.IGNORECASE)


def _host_name(value: str) -> str:
    if not HOST_NAME.fullmatch(value):
        raise ValueError("must be a name such as chat.example.org or *.example.org, without scheme, port and path")
    return value


class ServerSettings(Group):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)  # 0: a free one
    # further names by which it may be called while there are no keys; ["*"]: any
    allowed_hosts: Annotated[list[Annotated[str, AfterValidator(_host_name)]], NoDecode, BeforeValidator(_split)] = []
    metrics_port: int | None = Field(None, ge=1, le=65535)  # of its own for /metrics, without keys; unset: none
    workers: int = Field(1, ge=1)  # processes, each with models of its own; several need PostgreSQL
    max_body_bytes: int = Field(16 * 1024 * 1024, ge=1024)
    max_tokenize_chars: int = Field(1024 * 1024, ge=1024)  # of a text or chat whose tokens are only counted or listed
    keepalive_s: float = Field(5, gt=0)  # between comments on a silent stream
    send_timeout_s: float = Field(60, gt=0)  # a reader that takes nothing for so long is gone
    headers_timeout_s: float = Field(10, gt=0)  # from the connection, or the next request's first byte, to its headers
    body_timeout_s: float = Field(20, gt=0)  # without a byte of the body; all of it: beyond what body_rate allows
    body_rate: float = Field(500, gt=0)  # bytes a second
    max_connections: int | None = Field(None, ge=1)  # unset: what the limit of open files leaves
    # of which the keys are made that seal what clients keep; unset: one that the database keeps
    secret: str | None = Field(None, min_length=16, max_length=1024)
    token_ttl_s: int = Field(3600, gt=0)  # how long a browser may use its stream token
    predict_path: str = "/predict"  # empty: none
    drain_s: float = Field(30, ge=0)  # how long running answers may go on after SIGTERM


class CorsSettings(Group):
    origins: list[str] = []  # e.g. ["https://chat.example.org"] or ["*"]


class LogSettings(Group):
    level: str = "INFO"
    format: Literal["text", "json"] = "text"

    @field_validator("level")
    @classmethod
    def _is_a_level(cls, value: str) -> str:
        levels = logging.getLevelNamesMapping()
        if value.upper() not in levels:
            raise ValueError(f"expected one of {', '.join(levels)}")
        return value


ANYBODY = "local"  # the owner of everything where no keys are configured


class ApiKey(BaseModel):
    """Kept as a hash. `owner` is what its conversations belong to: the same for the same key, wherever it is used."""

    digest: bytes

    @property
    def owner(self) -> str:
        return "key_" + self.digest.hex()[:24]


def _api_keys(value: object) -> object:
    listed = _split(value)
    if not isinstance(listed, list):
        raise ValueError("must be keys with commas between them, or a JSON list of them")
    # an empty variable is what is left of a secret that was not found: it must not open the server to everybody
    if isinstance(value, str) and not listed:
        raise ValueError("is set, but there is no key in it: unset it to let everybody in")
    return [api_key(each) if isinstance(each, str) else each for each in listed]


def api_key(text: str) -> ApiKey:
    """A key itself, or `sha256:` and its digest in hexadecimal."""
    text = text.strip()
    if not text:
        raise ValueError("has an empty key in it: every caller would have that one")
    scheme, _, digest = text.partition(":")
    if scheme == "sha256":
        if not re.fullmatch("[0-9a-fA-F]{64}", digest):
            raise ValueError("after sha256: come 64 hexadecimal digits")
        return ApiKey(digest=bytes.fromhex(digest))
    return ApiKey(digest=hashlib.sha256(text.encode()).digest())


class UnknownSettings(ValueError): ...


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="PARLEY_",
        env_nested_delimiter="__",
        env_file=".env",
        extra="ignore",
        protected_namespaces=(),
        hide_input_in_errors=True,  # keys and passwords are among it
    )

    model: DefaultModelSettings = DefaultModelSettings()
    embedding: EmbeddingModelSettings = EmbeddingModelSettings()
    models: list[ModelSettings] = []  # further ones
    models_dir: Path = Path("models")  # where default models are kept
    engine: EngineSettings = EngineSettings()
    chat: ChatSettings = ChatSettings()
    images: ImageSettings = ImageSettings()
    database: DatabaseSettings = DatabaseSettings()
    server: ServerSettings = ServerSettings()
    cors: CorsSettings = CorsSettings()
    log: LogSettings = LogSettings()
    api_keys: Annotated[list[ApiKey], NoDecode, BeforeValidator(_api_keys)] = []
    specs: list[str] = [
        "anthropic",
        "ollama",
    ]  # further protocols: shipped ones, and your own as "package.module:Class"
    strict: bool = False  # refuse request keys that nobody knows, instead of naming them in a header

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource, **named: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The usual ones; names that look like ours and are none are refused, wherever they stand."""
        chosen = (*sources, *named.values())
        given = {k: v for source in chosen if isinstance(source, EnvSettingsSource) for k, v in source.env_vars.items()}
        if refusals := setting_names.refusals(cls, given):
            raise UnknownSettings("\n".join(refusals))
        return chosen

    @model_validator(mode="after")
    def _can_be_several(self) -> "Settings":
        if self.server.workers > 1 and self.database.url.startswith("sqlite"):
            raise ValueError("several workers share one history: PARLEY_SERVER__WORKERS > 1 needs PostgreSQL")
        if self.server.workers > 1 and self.server.metrics_port is not None:
            raise ValueError("several workers cannot share PARLEY_SERVER__METRICS_PORT")
        return self

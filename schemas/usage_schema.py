"""Usage in OpenAI's shapes: buckets of time, with a result for each group."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

Group = Literal["project_id", "api_key_id", "model"]
Width = Literal["1h", "1d"]
Ids = Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=1000)]
WIDTHS: dict[Width, int] = {"1h": 3600, "1d": 86_400}
DEFAULT_BUCKETS: dict[Width, int] = {"1h": 24, "1d": 7}
MOST_BUCKETS: dict[Width, int] = {"1h": 168, "1d": 31}
Time = Annotated[int, Field(ge=0, le=2**40)]


class UsageQuery(BaseModel):
    """Times in seconds since the epoch. Usage is kept by the hour: there are no buckets of a minute."""

    start_time: Time
    end_time: Time | None = None
    bucket_width: Width = "1d"
    limit: Annotated[int, Field(ge=1, le=168)] | None = None
    page: Annotated[str, Field(pattern=r"^\d{1,12}$")] | None = None
    project_ids: Ids | None = None
    api_key_ids: Ids | None = None
    models: Ids | None = None
    group_by: list[Group] = []

    @model_validator(mode="after")
    def _has_so_many_buckets(self) -> "UsageQuery":
        if self.buckets > MOST_BUCKETS[self.bucket_width]:
            raise ValueError(f"'limit' is at most {MOST_BUCKETS[self.bucket_width]} with this bucket_width")
        return self

    @property
    def buckets(self) -> int:
        return self.limit or DEFAULT_BUCKETS[self.bucket_width]


class UsageResult(BaseModel):
    """`num_failed_requests` and `seconds` are extensions."""

    input_tokens: int
    num_model_requests: int
    project_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    num_failed_requests: int
    seconds: float


class CompletionsResult(UsageResult):
    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    output_tokens: int
    input_cached_tokens: int
    output_reasoning_tokens: int = Field(description="an extension")


class EmbeddingsResult(UsageResult):
    object: Literal["organization.usage.embeddings.result"] = "organization.usage.embeddings.result"


class UsageBucket(BaseModel):
    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[CompletionsResult | EmbeddingsResult]


class UsagePage(BaseModel):
    object: Literal["page"] = "page"
    data: list[UsageBucket]
    has_more: bool
    next_page: str | None

"""Administration in OpenAI's shapes: projects, their keys, service accounts and rate limits."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from schemas.request_schema import Request

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=256, pattern=r"^[^\x00]*$")]
Seconds = Annotated[int, Field(ge=1, le=10 * 366 * 86_400)]
Limit = Annotated[int, Field(ge=1, le=2**53)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]


class ProjectName(Request):
    name: Name


class Project(BaseModel):
    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]


class KeyLimits(Request):
    """An extension; null: no limit."""

    rpm: Limit | None = None
    tpm: Limit | None = None
    parallel: Limit | None = None
    budget: Limit | None = Field(None, description="tokens a calendar month (UTC)")


class NewServiceAccount(Request):
    """`models` and `limits`, of the account's key, are extensions."""

    name: Name
    expires_in_seconds: Seconds | None = None
    create_service_account_only: bool | None = None
    models: list[ModelName] | None = Field(None, min_length=1, max_length=1000)
    limits: KeyLimits = Field(default_factory=KeyLimits)


class ServiceAccountUpdate(Request):
    name: Name | None = None
    role: Literal["member"] | None = None


class NewKey(Request):
    name: Name | None = None
    expires_in_seconds: Seconds | None = None
    models: list[ModelName] | None = Field(None, min_length=1, max_length=1000)
    limits: KeyLimits = Field(default_factory=KeyLimits)


Restriction = Literal["expires_at", "models", "rpm", "tpm", "parallel", "budget"]


class KeyUpdate(Request):
    """All but `expires_in_seconds` are extensions. What is left out stays as it is, each of the limits, too; `lift` has
    what is not restricted any more."""

    expires_in_seconds: Seconds | None = None
    name: Name | None = None
    models: list[ModelName] | None = Field(None, min_length=1, max_length=1000)
    limits: KeyLimits | None = None
    lift: list[Restriction] = Field([], max_length=6)


class ServiceAccount(BaseModel):
    id: str
    object: Literal["organization.project.service_account"] = "organization.project.service_account"
    name: str
    role: Literal["member"] = "member"
    created_at: int


class CreatedKey(BaseModel):
    """The only answer that has the key itself."""

    id: str
    object: Literal["organization.project.service_account.api_key"] = "organization.project.service_account.api_key"
    name: str
    value: str
    created_at: int
    expires_at: int | None


class CreatedServiceAccount(ServiceAccount):
    api_key: CreatedKey | None


class AccountOwner(BaseModel):
    type: Literal["service_account"] = "service_account"
    service_account: ServiceAccount


class ProjectKey(BaseModel):
    """`role`, `models` and `limits` are extensions."""

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None = Field(description="the hour of its last request")
    owner: AccountOwner
    owner_project_access: Literal["active"] = "active"
    role: Literal["user", "admin"]
    models: list[str] | None
    limits: KeyLimits


class DeletedKey(BaseModel):
    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: Literal[True] = True


class DeletedServiceAccount(BaseModel):
    id: str
    object: Literal["organization.project.service_account.deleted"] = "organization.project.service_account.deleted"
    deleted: Literal[True] = True


class RateLimit(BaseModel):
    """Of all keys of a project together, for one model. Null: no limit."""

    id: str
    object: Literal["project.rate_limit"] = "project.rate_limit"
    model: str
    max_requests_per_1_minute: int | None
    max_tokens_per_1_minute: int | None


class RateLimitUpdate(Request):
    max_requests_per_1_minute: Limit | None = None
    max_tokens_per_1_minute: Limit | None = None

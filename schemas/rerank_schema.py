"""POST /v1/rerank as Jina and Cohere have it, and POST /v1/score as vLLM does."""

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, TypeAdapter

from schemas.answer_schema import Omitted
from schemas.embeddings_schema import EmbeddingUsage
from schemas.input_schema import Truncation
from schemas.request_schema import Request

MAX_PAIRS = 1_000

Method = Literal["cross-encoder", "embedding"]


def _text(value: object) -> object:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError("must be a string or an object with a 'text'")
    return text


Document = Annotated[str, BeforeValidator(_text)]
Documents = Annotated[list[Document], Field(min_length=1, max_length=MAX_PAIRS)]
DOCUMENTS: TypeAdapter[list[str]] = TypeAdapter(Documents)


def _texts(value: object) -> str | list[str]:
    """Decides on the shape first: one short error, not one for each alternative."""
    if not isinstance(value, str | list):
        raise ValueError("must be a string or a list of strings")
    return value if isinstance(value, str) else DOCUMENTS.validate_python(value)


Texts = Annotated[str | list[str], PlainValidator(_texts, json_schema_input_type=str | Documents)]


class RerankRequest(Request):
    model: str | None = None
    query: str
    documents: Documents = Field(description="strings, or objects with a 'text'")
    top_n: int | None = Field(None, ge=1, description="so many results; all, if there are fewer")
    return_documents: bool = False
    truncate_prompt_tokens: Truncation | None = Field(None, description="-1: what the model takes")
    user: str | None = None


class RankedDocument(BaseModel):
    text: str


class RerankResult(BaseModel):
    index: int
    relevance_score: float
    document: Omitted[RankedDocument] = None


class RerankList(BaseModel):
    """The most relevant first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage
    method: Method


class ScoreRequest(Request):
    """One text against each of many, or as many against as many."""

    model_config = ConfigDict(populate_by_name=True)

    model: str | None = None
    text_1: Texts = Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))
    text_2: Texts = Field(validation_alias=AliasChoices("text_2", "items", "documents", "data_2"))
    truncate_prompt_tokens: Truncation | None = Field(None, description="-1: what the model takes")
    user: str | None = None


class Score(BaseModel):
    object: Literal["score"] = "score"
    index: int
    score: float


class ScoreList(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: EmbeddingUsage
    method: Method

"""What requests and responses of the HTTP API hold."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Base64Bytes, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from orthoproxy.catalog.filters import MAX_LENGTH
from orthoproxy.core.boxes import PATTERN, Box

MAX_RESULTS = 100
DATA_URL = re.compile(r"\Adata:image/[^,]*;base64,")
WITHOUT_DATA_URL = BeforeValidator(lambda text: DATA_URL.sub("", text).encode() if isinstance(text, str) else text)
ID_PATTERN = r"^[0-9a-f]{32}$"
CatalogName = Annotated[str | None, Field(description="Name of a catalog; default: the first one.", max_length=200)]
BoxText = Annotated[Box, BeforeValidator(Box.parse), WithJsonSchema({"type": "string", "pattern": PATTERN})]


class QueryPart(BaseModel):
    """The part of a picture to search by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    box: BoxText | None = Field(
        default=None,
        description="Search by this part of the upright picture: x,y,width,height in pixels, such as 10,20,64,48.",
    )


class SearchOptions(QueryPart):
    """Where to search, how many images to return, and which ones."""

    k: int = Field(default=10, ge=1, le=MAX_RESULTS, description="Number of results.")
    filter: str | None = Field(
        default=None,
        max_length=MAX_LENGTH,
        description='A condition on label, group and path, such as label != "wren".',
    )
    labels: list[str] = Field(default=[], max_length=10_000, description="Only images with one of these labels.")
    diverse: bool = Field(
        default=False, description="At most one result per group, or per label where there is no group."
    )
    catalog: CatalogName = None


class SearchRequest(SearchOptions):
    """A search by exactly one of `image`, `id` and `embedding`."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"oneOf": [{"required": [name]} for name in ("image", "id", "embedding")]},
    )

    image: Annotated[Base64Bytes | None, WITHOUT_DATA_URL] = Field(
        default=None, min_length=1, description="An image file in base64; a data: URL, too."
    )
    id: str | None = Field(
        default=None, pattern=ID_PATTERN, description="An image of the catalog, left out of the results."
    )
    embedding: list[float] | None = Field(
        default=None,
        min_length=1,
        max_length=16_384,
        description="An embedding of the catalog's dimension, of any length.",
    )

    @model_validator(mode="after")
    def _exactly_one_query(self) -> SearchRequest:
        if sum(value is not None for value in (self.image, self.id, self.embedding)) != 1:
            raise PydanticCustomError("query", "give exactly one of image, id and embedding")
        if self.embedding is not None and self.box is not None:
            raise PydanticCustomError("query", "an embedding has no box")
        return self


class SearchResult(BaseModel):
    """One image found."""

    rank: int
    id: str
    similarity: float = Field(description="Cosine similarity, at most 1.")
    label: str
    group: str
    path: str = Field(description="Relative to the catalog's root.")
    image: str = Field(description="Path of the image, to append to the server's address.")
    box: str | None = Field(default=None, description="Part of the picture, as in the request. Null: all of it.")


class SearchResults(BaseModel):
    """Images found, the most similar first."""

    catalog: str
    results: list[SearchResult]
    threshold: float | None = Field(description="Similarity below which the model says: no match. Null: unknown.")
    matches: int = Field(description="Number of results at or above the threshold; all of them without a threshold.")
    label: str | None = Field(default=None, description="Label that the matches vote for. Null: unknown.")
    seconds: float = Field(description="Time that the search took on the server.")


class CatalogInfo(BaseModel):
    """A catalog that is served."""

    name: str
    images: int
    labels: int
    dim: int
    model: str = Field(description="Identity of the model that made the embeddings.")
    takes_images: bool = Field(description="Whether the server has this model, to embed an image.")


class Upload(BaseModel):
    """An uploaded image, whose embedding the server keeps for a while."""

    upload: str


class Problem(BaseModel):
    """What is wrong with a request."""

    problem: str
    field: str | None
    expected: str | None
    hint: str | None


class ErrorResponse(BaseModel):
    """A request that failed."""

    error: Problem

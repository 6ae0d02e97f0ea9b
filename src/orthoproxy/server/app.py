"""Search over HTTP: the routes, what they take and return, and the page mounted beside them."""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from enum import IntEnum
from functools import partial
from importlib import resources
from typing import Annotated, Any, Literal
from urllib.parse import quote

import anyio.to_thread
import numpy as np

from orthoproxy.core.errors import InputError
from orthoproxy.server.limits import Limits, Refused
from orthoproxy.server.security import SMALL_BODY, Door, Guard, is_everywhere, names_of
from orthoproxy.server.service import MOST_RESULTS, Found, Service

try:
    from fastapi import APIRouter, FastAPI, Path, Query, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
    from pydantic import BaseModel, ConfigDict, Field, ValidationError
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise InputError("fastapi is not installed; run: pip install 'orthoproxy[search]'") from error

PAGE = "/page"
WAYS = ("image", "id", "embedding")
ROUTES = ["/", "/health", "/catalogs", "/search", "/uploads", "/images/[^/]+", "/openapi.json", "/login", "/logout"]
ROUTES += [r"/favicon\.ico"]
THREADS = 128  # that wait for a turn or for a catalog; few of them work
ID = r"^[0-9a-f]{32}$"
Key = Annotated[str, Path(pattern=ID, description="An image's id, as a search returns it.")]
Name = Annotated[str | None, Query(description="A catalog's name; the first one if left out.", max_length=200)]


class Side(IntEnum):
    """Longer side of a small copy, in pixels."""

    SMALL, MEDIUM, LARGE = 160, 320, 640


Size = Annotated[Side | None, Query(description="Longer side in pixels; the file itself if left out.")]


class Problem(BaseModel):
    """What is wrong with a request."""

    detail: str


class Search(BaseModel):
    """A search: exactly one of `image`, `id` and `embedding`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    image: str | None = Field(None, description="A picture's file, base64: JPEG, PNG, WebP, BMP or GIF.", min_length=1)
    id: str | None = Field(None, description="An image of the catalog, itself left out of what is found.", pattern=ID)
    embedding: list[float] | None = Field(
        None, description="As many numbers as the catalog's embeddings have.", min_length=1, max_length=16_384
    )
    k: int = Field(10, ge=1, le=MOST_RESULTS, description="How many to find.", strict=True)
    filter: str | None = Field(
        None, description='A condition on label, group and path, such as label != "x".', max_length=4000
    )
    diverse: bool = Field(
        False, description="At most one image a group, or a label where there is no group.", strict=True
    )
    catalog: str | None = Field(None, description="A catalog's name; the first one if left out.", max_length=200)


class Similar(BaseModel):
    """An image found."""

    rank: int
    id: str
    similarity: float = Field(description="Cosine, at most 1.")
    label: str
    group: str
    path: str = Field(description="Relative to the catalog's root.")
    image: str = Field(description="Where the picture is.")


class Answer(BaseModel):
    """What a search found, the most similar first."""

    catalog: str
    results: list[Similar]
    threshold: float | None = Field(description="Below this similarity the model says: no match. Null: not calibrated.")
    matches: int = Field(description="How many of the results are at or above the threshold, or all without one.")
    seconds: float = Field(description="That the search took here.")


class Listed(BaseModel):
    """A catalog that is served."""

    name: str
    images: int
    labels: int
    dim: int
    model: str = Field(description="Identity of the model that embedded it.")
    takes_images: bool = Field(description="Whether its model is here to embed a picture.")


class Kept(BaseModel):
    """A picture that was kept for a while, to search by it on the page."""

    upload: str


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    meanings = {
        401: "The token is missing or wrong.",
        403: "Host or Origin is another one's.",
        404: "There is no such catalog or image.",
        408: "The request took too long to arrive.",
        413: "The request or the picture is too large.",
        415: "The picture or the request is of a format that is not accepted.",
        422: "Something in the request is wrong; the detail says what.",
        429: "Too many requests.",
        503: "Too much to do at the moment.",
    }
    return {status: {"model": Problem, "description": meanings[status]} for status in (401, 403, *statuses, 429, 503)}


_IMAGE_BODY = {"type": "string", "format": "binary", "description": "A picture's file."}
_FORM = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": _IMAGE_BODY,
        "k": {"type": "integer", "minimum": 1, "maximum": MOST_RESULTS, "default": 10},
        "filter": {"type": "string", "maxLength": 4000},
        "diverse": {"type": "boolean", "default": False},
        "catalog": {"type": "string", "maxLength": 200},
    },
}
routes = APIRouter()


@routes.get("/health", summary="Whether the server answers", responses=_problems())
async def health() -> Health:
    """Return ok; nothing is looked up."""
    return Health()


@routes.get("/catalogs", summary="The catalogs served", responses=_problems())
async def catalogs(request: Request) -> list[Listed]:
    """List the catalogs; the first is the default."""
    return [
        Listed(
            name=shelf.name,
            images=shelf.images,
            labels=len(shelf.labels),
            dim=shelf.catalog.dim,
            model=shelf.catalog.model,
            takes_images=shelf.model is not None,
        )
        for shelf in _service(request).shelves.values()
    ]


@routes.post(
    "/search",
    summary="Find what looks like a picture",
    responses=_problems(404, 408, 413, 415, 422),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Search"}},
                "multipart/form-data": {"schema": _FORM},
            },
        }
    },
)
async def search(request: Request) -> Answer:
    """Search by exactly one of: a picture, an image of the catalog, an embedding.

    JSON takes all three, the picture as base64. A form takes the picture as a file.
    """
    asked, content = await _search_of(request)
    service = _service(request)
    how = {"k": asked.k, "where": asked.filter, "diverse": asked.diverse}
    if content is not None:
        work = partial(service.search_picture, content, asked.catalog, **how)
    elif asked.id is not None:
        work = partial(service.search_id, asked.id, asked.catalog, **how)
    else:
        work = partial(service.search, np.array(asked.embedding, dtype=np.float64), asked.catalog, **how)
    return answer_of(await anyio.to_thread.run_sync(work))


@routes.post(
    "/uploads",
    summary="Keep a picture for a while",
    responses=_problems(408, 413, 415, 422),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image"],
                        "additionalProperties": False,
                        "properties": {"image": _IMAGE_BODY},
                    }
                }
            },
        }
    },
)
async def uploads(request: Request) -> Kept:
    """Take a picture for the page, which then searches by it as often as a setting changes."""
    fields, content = await _form_of(request)
    if fields:
        raise Refused(422, "there is one field, image")
    return Kept(upload=await anyio.to_thread.run_sync(_service(request).keep, content))


@routes.get(
    "/images/{id}",
    summary="A picture of a catalog",
    response_class=Response,
    responses={
        200: {"content": {kind: {} for kind in ("image/*",)}, "description": "The picture."},
        **_problems(404, 413, 415, 422),
    },
)
async def images(request: Request, id: Key, catalog: Name = None, size: Size = None) -> Response:
    """Return an image's file or, with `size`, a small copy."""
    service = _service(request)
    if size is None:
        content, kind = await anyio.to_thread.run_sync(service.picture, id, catalog)
    else:
        content, kind = await anyio.to_thread.run_sync(service.thumbnail, id, catalog, int(size)), "image/webp"
    keep = {"cache-control": "private, max-age=300", "content-security-policy": "default-src 'none'; sandbox"}
    return Response(content, media_type=kind, headers=keep)


def answer_of(found: Found) -> Answer:
    """Say what was found as the routes do.

    Parameters
    ----------
    found
        From a `Service`.

    Examples
    --------
    >>> answer_of(Found("icons", [], 0.7, 0.01)).matches
    0
    """
    where = f"?catalog={quote(found.catalog, safe='')}"
    results = [
        Similar(rank=rank, image=f"/images/{result.id}{where}", **asdict(result))
        for rank, result in enumerate(found.results, 1)
    ]
    least = -np.inf if found.threshold is None else found.threshold
    return Answer(
        catalog=found.catalog,
        results=results,
        threshold=found.threshold,
        matches=sum(result.similarity >= least for result in results),
        seconds=round(found.seconds, 6),
    )


def _service(request: Request) -> Service:
    return request.app.state.service


async def _search_of(request: Request) -> tuple[Search, bytes | None]:
    """Read a search, and the picture's file if it is by picture."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        fields, content = await _form_of(request)
        if unknown := set(fields) - {"k", "filter", "diverse", "catalog"}:
            raise Refused(422, f"no field {min(unknown)!r} in a form; there are image, k, filter, diverse and catalog")
        try:
            given = {name: _number_or_truth(name, value) for name, value in fields.items()}
            return Search.model_validate(given), content
        except ValidationError as error:
            raise Refused(422, _first_of(error.errors())) from error
    if kind != "application/json":
        raise Refused(415, "send application/json, or a picture as multipart/form-data")
    try:
        asked = Search.model_validate_json(await request.body())
    except ValidationError as error:
        raise Refused(422, _first_of(error.errors(include_input=False))) from error
    if sum(value is not None for value in (asked.image, asked.id, asked.embedding)) != 1:
        raise Refused(422, "give exactly one of image, id and embedding")
    try:
        return asked, None if asked.image is None else base64.b64decode(asked.image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(422, "image: not base64") from error


def _number_or_truth(name: str, value: str) -> object:
    """A form holds text alone."""
    if name == "k" and re.fullmatch(r"-?[0-9]{1,9}", value):
        return int(value)
    if name == "diverse" and value in ("true", "false"):
        return value == "true"
    return value


async def _form_of(request: Request) -> tuple[dict[str, str], bytes]:
    """Read a form: its fields, and the file in ``image``."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(415, "send the picture as multipart/form-data, in the field image")
    try:
        async with request.form(max_files=1, max_fields=8, max_part_size=SMALL_BODY) as form:
            fields = form.multi_items()
            image = form.get("image")
            if not isinstance(image, UploadFile):
                raise Refused(422, "image: missing; send a picture's file in this field")
            if len({name for name, _ in fields}) != len(fields):
                raise Refused(422, "a field is there twice")
            return {name: value for name, value in fields if isinstance(value, str)}, await image.read()
    except HTTPException as error:
        raise Refused(422, "the form cannot be read") from error


def _first_of(errors: list[Any]) -> str:
    place = ".".join(str(part) for part in errors[0]["loc"])
    return f"{place}: {errors[0]['msg']}" if place else errors[0]["msg"]


async def _refuse(request: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, Refused)
    more = {"retry-after": "1"} if refusal.status in (429, 503) else {}
    return JSONResponse({"detail": refusal.reason}, refusal.status, headers=more)


async def _refuse_values(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": _first_of(list(error.errors())).partition(".")[2]}, 422)


async def _say_nothing(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "something went wrong here; the server's log has the details"}, 500)


def make_app(
    service: Service, host: str = "127.0.0.1", port: int = 7860, token: str | None = None, names: tuple[str, ...] = ()
) -> Guard:
    """Make the application: routes and page, and the guard before them.

    Parameters
    ----------
    service
        What is served.
    host, port
        Where it will listen.
    token
        That a client must know; None for none.
    names
        Under which the server is known besides.

    Returns
    -------
    Guard
        An ASGI application; the FastAPI application within is its `app`.
    """
    from orthoproxy.server.page import PAGE_ROUTES, mount_page

    door, app, limits = Door(token, port), _with_routes(service), service.limits
    guard = Guard(
        app,
        door,
        names_of(host, names),
        any_address=is_everywhere(host),
        limits=limits,
        paths=[*ROUTES, *(PAGE + path for path in PAGE_ROUTES)],
        public=["/login"],
        body_limit=partial(_body_limit, limits),
    )
    _add_login(app, door, guard)
    mount_page(app, service, PAGE, lambda request: door.lets_in(dict(request.headers)) is True)
    _describe(app, token is not None)
    return guard


def _with_routes(service: Service) -> FastAPI:
    """The application by HTTP: what it answers, and how it refuses."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield
        service.close()

    app = FastAPI(
        title="orthoproxy",
        summary="Search a collection of images by picture.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(routes)
    app.add_exception_handler(Refused, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_values)
    app.add_exception_handler(Exception, _say_nothing)
    return app


def _body_limit(limits: Limits, path: str) -> int:
    """A picture, as base64 a third larger, and what is around it."""
    return limits.upload_bytes * 4 // 3 + SMALL_BODY if path in ("/search", "/uploads") else SMALL_BODY


def _add_login(app: FastAPI, door: Door, guard: Guard) -> None:
    @app.get("/", include_in_schema=False)
    async def start() -> RedirectResponse:
        return RedirectResponse(f"{PAGE}/", 307)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(_text("icon.svg"), media_type="image/svg+xml", headers={"cache-control": "max-age=86400"})

    @app.get("/login", include_in_schema=False)
    async def login() -> Response:
        return RedirectResponse(f"{PAGE}/", 303) if door.token is None else _login_page()

    @app.post("/login", include_in_schema=False)
    async def log_in(request: Request) -> Response:
        try:
            async with request.form(max_files=0, max_fields=1) as form:
                token = form.get("token")
        except HTTPException as error:
            raise Refused(422, "the form cannot be read") from error
        if not isinstance(token, str) or not door.knows(token.strip()):
            guard.failed(request.scope)
            return _login_page("This is not the token.", 401)
        secure = request.url.scheme == "https"
        return RedirectResponse(f"{PAGE}/", 303, headers={"set-cookie": door.set_cookie(secure)})

    @app.post("/logout", include_in_schema=False)
    async def log_out() -> Response:
        return RedirectResponse("/login", 303, headers={"set-cookie": f"{door.cookie}=; Path=/; Max-Age=0"})


def _login_page(problem: str = "", status: int = 200) -> HTMLResponse:
    alert = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
    return HTMLResponse(_text("login.html").replace("<!-- problem -->", alert), status)


def _text(name: str) -> str:
    return (resources.files("orthoproxy.server") / "templates" / name).read_text(encoding="utf-8")


def _describe(app: FastAPI, has_token: bool) -> None:
    """Put the search's own schema, which FastAPI does not see, and the token into the description."""
    described = app.openapi()
    schema = Search.model_json_schema(ref_template="#/components/schemas/{model}")
    described["components"]["schemas"]["Search"] = schema | {"oneOf": [{"required": [way]} for way in WAYS]}
    if has_token:
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"token": []}]
    app.openapi_schema = described

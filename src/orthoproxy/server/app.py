"""The HTTP API: its routes, and the application that holds them together with the page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from enum import IntEnum
from functools import partial
from typing import Annotated, Any
from weakref import WeakValueDictionary

import anyio.to_thread
from fastapi import APIRouter, Depends, FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.security import HTTPBearer
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from orthoproxy.core.errors import InputError
from orthoproxy.server.limits import RequestError
from orthoproxy.server.page import PAGE_PATHS, mount_page, template
from orthoproxy.server.schemas import (
    ID_PATTERN,
    CatalogInfo,
    CatalogName,
    ErrorResponse,
    QueryPart,
    SearchOptions,
    SearchRequest,
    SearchResults,
    Upload,
)
from orthoproxy.server.security import SMALL_BODY, SecurityMiddleware, allowed_hosts
from orthoproxy.server.service import Service

PAGE = "/page"
ImageId = Annotated[str, Path(pattern=ID_PATTERN)]
PATHS = ["/", "/health", "/catalogs", "/search", "/uploads", "/images/[^/]+", "/openapi.json", r"/favicon\.ico"]


class Side(IntEnum):
    """Longer side of a thumbnail in pixels."""

    SMALL, MEDIUM, LARGE = 160, 320, 640


async def _slot(request: Request) -> AsyncIterator[None]:
    """Wait for one of the client's places for searches in progress; status 503 if those of all clients are taken."""
    state, client = request.app.state, request.client.host if request.client else ""
    own = state.slots_of.setdefault(client, asyncio.Semaphore(_service(request).limits.searches_per_client))
    async with own:
        if state.slots.locked():
            raise RequestError("too many requests in progress", status=503, hint="try again in a second")
        async with state.slots:
            yield


def _body(form_fields: dict[str, Any], **other: Any) -> dict[str, Any]:
    """Describe a body that FastAPI does not see: a form with an image, or another media type."""
    image = {"type": "string", "format": "binary", "description": "An image file: JPEG, PNG, WebP, BMP or GIF."}
    form = {"type": "object", "required": ["image"], "additionalProperties": False}
    form["properties"] = {"image": image, **form_fields}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}, **other}}}


SEARCH_BODY = _body(
    SearchOptions.model_json_schema()["properties"],
    **{"application/json": {"schema": SearchRequest.model_json_schema()}},
)
router = APIRouter(responses={status: {"model": ErrorResponse} for status in ("4XX", "5XX")})


@router.get("/health", summary="Check that the server answers")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/catalogs", summary="List the catalogs")
async def catalogs(request: Request) -> list[CatalogInfo]:
    return [served.info for served in _service(request).catalogs.values()]


@router.post(
    "/search",
    summary="Search by an image, an id or an embedding",
    dependencies=[Depends(_slot)],
    openapi_extra=SEARCH_BODY,
)
async def search(request: Request) -> SearchResults:
    """JSON takes exactly one of the three, the image in base64. A form takes the image as a file."""
    service = _service(request)
    if _media_type(request) != "application/json":
        fields, content = await _read_form(request, "application/json or multipart/form-data")
        work = partial(service.search_image, content, SearchOptions.model_validate(fields))
    else:
        asked = SearchRequest.model_validate_json(await request.body(), strict=True)
        if asked.image is not None:
            work = partial(service.search_image, asked.image, asked)
        elif asked.id is not None:
            work = partial(service.search_id, asked.id, asked)
        else:
            work = partial(service.search_embedding, asked.embedding or [], asked)
    return await anyio.to_thread.run_sync(work)


@router.post(
    "/uploads",
    summary="Upload an image",
    dependencies=[Depends(_slot)],
    openapi_extra=_body(QueryPart.model_json_schema()["properties"]),
)
async def uploads(request: Request) -> Upload:
    """Keep the embedding of an image for a while, for the page to search by it with different options."""
    fields, content = await _read_form(request, "multipart/form-data")
    box = QueryPart.model_validate(fields).box
    return Upload(upload=await anyio.to_thread.run_sync(_service(request).keep_upload, content, box))


@router.get(
    "/images/{id}",
    summary="Get an image",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}, "description": "The image."}},
)
async def images(request: Request, id: ImageId, catalog: CatalogName = None, size: Side | None = None) -> Response:
    """Return the file, or with `size` a small copy, of its box if it has one, whose longer side has these pixels."""
    side = None if size is None else int(size)
    content, media_type = await anyio.to_thread.run_sync(_service(request).image, id, catalog, side)
    headers = {"cache-control": "private, max-age=300", "content-security-policy": "default-src 'none'; sandbox"}
    if isinstance(content, bytes):
        return Response(content, media_type=media_type, headers=headers)
    return FileResponse(content, media_type=media_type, headers=headers)


def _service(request: Request) -> Service:
    return request.app.state.service


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def _read_form(request: Request, expected: str) -> tuple[dict[str, Any], bytes]:
    """Return a form's fields, and the file in its field ``image``."""
    if _media_type(request) != "multipart/form-data":
        raise RequestError("wrong content type", status=415, expected=expected)
    try:
        async with request.form(max_files=1, max_fields=8, max_part_size=SMALL_BODY) as form:
            image = form.get("image")
            if not isinstance(image, UploadFile):
                raise RequestError("missing", field="image", expected="an image file")
            return {name: value for name, value in form.items() if name != "image"}, await image.read()
    except HTTPException as error:
        raise RequestError("malformed form") from error


async def _handle_error(request: Request, error: Exception) -> JSONResponse:
    """Turn every exception into JSON; an unexpected one tells the client nothing, and the log everything."""
    match error:
        case RequestError():
            return error.response()
        case InputError():  # of the catalog or the embedding; the field tells the client what to change
            found = RequestError(error.problem, field=error.field, expected=error.expected, hint=error.hint)
        case ValidationError() | RequestValidationError():
            first = error.errors()[0]
            place = first["loc"][isinstance(error, RequestValidationError) :]  # which begins with "query" or "path"
            found = RequestError(first["msg"], field=".".join(map(str, place)) or None)
        case HTTPException():
            found = RequestError(error.detail, status=error.status_code)
        case _:
            found = RequestError("internal error", status=500, hint="see the server's log")
    return found.response()


def make_app(service: Service, host: str = "127.0.0.1", token: str | None = None, names: Sequence[str] = ()) -> FastAPI:
    """Make the ASGI application of `orthoproxy serve`: the HTTP API, the page, and the checks before both."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="orthoproxy",
        summary="Search a collection of images by image.",
        version="1",
        lifespan=lifespan,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if token else [],  # for the description of the API
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
    )
    app.state.service, app.state.slots = service, asyncio.Semaphore(service.limits.searches)
    app.state.slots_of = WeakValueDictionary[str, asyncio.Semaphore]()  # by address, while it has requests
    app.include_router(router)
    for kind in (InputError, ValidationError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _handle_error)

    @app.get("/", include_in_schema=False)
    @app.get(PAGE, include_in_schema=False)
    async def start() -> RedirectResponse:
        return RedirectResponse(f"{PAGE[1:]}/", 307)  # relative, for a proxy may serve this under a prefix

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(template("icon.svg"), media_type="image/svg+xml", headers={"cache-control": "max-age=86400"})

    mount_page(app, service, PAGE)
    upload = service.limits.upload_bytes * 10 // 7 + SMALL_BODY  # base64 in lines takes 42 % more
    app.add_middleware(
        SecurityMiddleware,
        hosts=allowed_hosts(host, names),
        token=token,
        paths="|".join([*PATHS, *(PAGE + path for path in PAGE_PATHS)]),
        body_limits={"/search": upload, "/uploads": upload},
        body_seconds=service.limits.body_seconds,
    )
    return app

"""Searching over HTTP, on a catalog in a Milvus Lite folder."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from serving import COLOURS, HERE, QUICK, TOKEN, client_of, make_catalog, make_images, make_model
from starlette.routing import Mount
from starlette.testclient import TestClient

from orthoproxy.catalog.catalog import Catalog, image_id
from orthoproxy.core.errors import InputError
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.server.app import PAGE, make_app
from orthoproxy.server.limits import Limits, Refused
from orthoproxy.server.service import Service

SECRET = "the words of a file that nobody may read"
GREEN, RED = image_id("green/0.png"), image_id("red/0.png")
GREENS = [f"green/{number}.png" for number in range(5)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and beside them what must not be served."""
    root = tmp_path_factory.mktemp("served") / "images"
    make_images(root)
    (root.parent / "secret.txt").write_text(SECRET)
    (root.parent / "secret.png").write_bytes((root / "red" / "0.png").read_bytes())
    (root / "words.png").write_text(SECRET)
    (root / "link.png").symlink_to(root.parent / "secret.png")
    return root


@pytest.fixture(scope="module")
def service(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder, models = tmp_path_factory.mktemp("catalogs"), [make_model(0), make_model(1)]
    paths = [f"{name}/{number}.png" for name in COLOURS for number in range(5)]
    first = make_catalog(folder / "first", models[0], root, paths)
    second = make_catalog(folder / "second", models[1], root, [path for path in paths if path != "red/0.png"])
    odd = pd.DataFrame({"path": ["../secret.png", "../secret.txt", "words.png", "link.png", "gone.png", "/etc/passwd"]})
    odd.insert(0, "id", odd["path"].map(image_id))
    odd = odd.assign(label="<b>\"odd'", group="", content="0")
    first.upsert(odd, np.eye(8, dtype=np.float32)[: len(odd)])
    service = Service({"first": first, "second": second}, models, QUICK)
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with client_of(make_app(service)) as client:
        yield client


@pytest.fixture(autouse=True, scope="module")
def _stays_open(service: Service) -> Iterator[None]:
    """Several applications share the service in these tests; each would close it when it ends."""
    close, service.close = service.close, lambda: None  # type: ignore[method-assign]
    yield
    service.close = close  # type: ignore[method-assign]


def png(root: Path, path: str = "green/0.png") -> bytes:
    return (root / path).read_bytes()


def test_a_picture_finds_itself_and_its_like(client: TestClient, root: Path) -> None:
    answer = client.post("/search", files={"image": png(root)}, data={"k": "5"})
    assert answer.status_code == 200
    found = answer.json()
    assert found["results"][0] | {"similarity": 1} == {
        "rank": 1,
        "id": GREEN,
        "similarity": 1,
        "label": "green",
        "group": "0",
        "path": "green/0.png",
        "image": f"/images/{GREEN}?catalog=first",
    }
    assert found["results"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert sorted(result["path"] for result in found["results"]) == GREENS
    assert (found["catalog"], found["threshold"], found["matches"]) == ("first", None, 5)
    assert 0 < found["seconds"] < 60


def test_file_base64_id_and_embedding_agree(client: TestClient, service: Service, root: Path) -> None:
    embedding = service.shelf("first").model.embed([str(root / "green" / "0.png")])[0]  # type: ignore[union-attr]
    ways = [{"image": base64.b64encode(png(root)).decode()}, {"embedding": (7.5 * embedding).tolist()}]
    answers = [client.post("/search", json={**way, "k": 6}).json()["results"] for way in ways]
    answers.append(client.post("/search", files={"image": png(root)}, data={"k": "6"}).json()["results"])
    for answer in answers:
        assert [result["id"] for result in answer] == [result["id"] for result in answers[0]]
    by_id = client.post("/search", json={"id": GREEN, "k": 5}).json()["results"]
    assert [result["id"] for result in by_id] == [result["id"] for result in answers[0][1:]]  # itself left out


def test_the_order_is_that_of_exact_similarities(client: TestClient, service: Service) -> None:
    query = np.random.default_rng(3).standard_normal(8)
    rows = service.shelf("second").catalog.rows()
    embeddings = np.stack(service.shelf("second").catalog.get(list(rows["id"]), True)["embedding"])
    expected = rows["id"].to_numpy()[np.argsort(-(embeddings @ query))]
    found = client.post("/search", json={"embedding": query.tolist(), "k": 19, "catalog": "second"}).json()["results"]
    assert [result["id"] for result in found] == expected.tolist()


def test_a_filter_and_one_a_group(client: TestClient) -> None:
    ask = {"id": GREEN, "k": 4, "filter": "label not in ['green', 'red'] and path like '%.png'"}
    labels = {result["label"] for result in client.post("/search", json=ask).json()["results"]}
    assert labels and not labels & {"green", "red"}
    groups = [
        result["group"]
        for result in client.post("/search", json={"id": GREEN, "k": 5, "diverse": True}).json()["results"]
    ]
    assert len(set(groups)) == len(groups) == 5


def test_another_catalog_embeds_with_its_own_model(client: TestClient, service: Service, root: Path) -> None:
    ask = {"files": {"image": png(root, "red/0.png")}, "data": {"catalog": "second", "k": "3"}}
    found = client.post("/search", **ask).json()
    query = service.shelf("second").model.embed([str(root / "red" / "0.png")])  # type: ignore[union-attr]
    expected = service.shelf("second").catalog.search(query, k=3)[0]
    assert [result["id"] for result in found["results"]] == [hit.id for hit in expected]


def test_an_image_that_another_catalog_lacks_is_embedded_anew(service: Service, root: Path) -> None:
    found = service.search_id(RED, "second", own="first", k=3)
    assert [result.id for result in found.results] == [
        result.id for result in service.search_picture(png(root, "red/0.png"), "second", k=3).results
    ]
    with pytest.raises(Refused):
        service.search_id(RED, "second", k=3)


JSON = {"content-type": "application/json"}
WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"json": {}}, 422, "exactly one"),
    ({"json": {"id": GREEN, "embedding": [1.0] * 8}}, 422, "exactly one"),
    ({"json": {"id": "../../etc/passwd"}}, 422, "id"),
    ({"json": {"id": "0" * 32}}, 404, "no image"),
    ({"json": {"id": GREEN, "catalog": "nowhere"}}, 404, "no catalog"),
    ({"json": {"id": GREEN, "k": 0}}, 422, "k:"),
    ({"json": {"id": GREEN, "k": 101}}, 422, "k:"),
    ({"json": {"id": GREEN, "k": "5"}}, 422, "k:"),
    ({"json": {"id": GREEN, "path": "/etc/passwd"}}, 422, "path: "),
    ({"json": {"id": GREEN, "filter": "content == 'x'"}}, 422, "filter: no field"),
    ({"json": {"id": GREEN, "filter": "label == 'x') or (label != 'x'"}}, 422, "filter"),
    ({"json": {"id": GREEN, "filter": "label == 'x' or id != ''"}}, 422, "filter"),
    ({"json": {"embedding": [1.0] * 7}}, 422, "7 numbers"),
    ({"json": {"embedding": [0.0] * 8}}, 422, "length"),
    ({"json": {"embedding": ["x"] * 8}}, 422, "embedding"),
    ({"content": b'{"embedding": [NaN, 1, 1, 1, 1, 1, 1, 1]}', "headers": JSON}, 422, "embedding"),
    ({"content": b'{"embedding": [1e999, 1, 1, 1, 1, 1, 1, 1]}', "headers": JSON}, 422, "embedding"),
    ({"json": {"image": "no base64!"}}, 422, "base64"),
    ({"json": {"image": base64.b64encode(b"words").decode()}}, 415, "format"),
    ({"content": b"{", "headers": JSON}, 422, ""),
    ({"content": b"\xff\xfe", "headers": JSON}, 422, ""),
    ({"content": b"[" * 50_000, "headers": JSON}, 422, ""),
    ({"content": b"null", "headers": JSON}, 422, ""),
    ({"content": b"id=1", "headers": {"content-type": "application/x-www-form-urlencoded"}}, 415, "json"),
    ({"content": b"words", "headers": {"content-type": "image/png"}}, 415, "json"),
    ({"content": b"words", "headers": {"content-type": "multipart/form-data"}}, 422, "form"),
    ({"content": b"words", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 422, ""),
    ({"files": {"file": b"words"}}, 422, "image"),
    ({"files": {"image": b"words, no picture"}}, 415, "format"),
    ({"files": [("image", b"1"), ("image", b"2")]}, 422, "form"),
    ({"files": {"image": b"words"}, "data": {"k": "many"}}, 422, "k:"),
    ({"files": {"image": b"words"}, "data": {"id": GREEN}}, 422, "no field"),
    ({"files": {"image": b"words"}, "data": {"diverse": "maybe"}}, 422, "diverse"),
]


@pytest.mark.parametrize(("request_", "status", "words"), WRONG)
def test_what_is_wrong_is_told(client: TestClient, request_: dict[str, Any], status: int, words: str) -> None:
    answer = client.post("/search", **request_)
    assert answer.status_code == status
    assert set(answer.json()) == {"detail"}
    assert words in answer.json()["detail"]
    assert not {"Traceback", "site-packages", "orthoproxy/"} & set(answer.json()["detail"].split())


def test_a_large_embedding_is_a_direction_too(client: TestClient) -> None:
    ids = [
        [result["id"] for result in client.post("/search", json={"embedding": [x] + [0.0] * 7}).json()["results"]]
        for x in (1.0, 1e300, 1e-11)
    ]
    assert ids[0] == ids[1] == ids[2]


def test_a_picture_larger_than_the_limit_is_not_taken(service: Service, root: Path) -> None:
    small = Limits(upload_bytes=100_000, pixels=1000, decoders=1)
    limited = Service({"first": service.shelf("first").catalog}, list(service.models.values()), limits=small)
    try:
        with client_of(make_app(limited)) as client:
            limited.close = lambda: None  # type: ignore[method-assign]
            for path in ("/search", "/uploads"):
                answer = client.post(path, files={"image": bytes(300_000)})
                assert (answer.status_code, "bytes" in answer.json()["detail"]) == (413, True)
                answer = client.post(path, files={"image": png(root)})  # 48 x 56
                assert (answer.status_code, "pixels" in answer.json()["detail"]) == (413, True)
            sent = json.dumps({"image": base64.b64encode(png(root) + bytes(100_000)).decode()})
            assert client.post("/search", content=sent, headers=JSON).status_code == 413
    finally:
        limited.decoders.close()


def test_too_many_at_once_are_told_so(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, go_on, at_work = service.shelf("first").catalog, threading.Event(), threading.Semaphore(0)

    def waits(*asked: Any) -> Any:
        at_work.release()
        go_on.wait(20)
        return Catalog.search(catalog, *asked)

    monkeypatch.setattr(catalog, "search", waits)
    limits = replace(QUICK, searches=1, waiting=2)
    busy = Service({"first": catalog}, list(service.models.values()), limits)
    statuses: list[int] = []

    def ask(client: TestClient) -> None:
        statuses.append(client.post("/search", json={"embedding": [1.0] * 8}).status_code)

    with client_of(make_app(busy)) as client:
        busy.close = busy.decoders.close  # type: ignore[method-assign]
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(6)]
        threads[0].start()
        assert at_work.acquire(timeout=20)
        for thread in threads[1:]:
            thread.start()
        while len(statuses) < 3:
            threading.Event().wait(0.01)
        assert statuses == [503] * 3  # one is searched for, two wait
        go_on.set()
        for thread in threads:
            thread.join(20)
    assert sorted(statuses) == [200] * 3 + [503] * 3


def test_a_catalog_that_fails_is_503_and_tells_nothing(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise InputError("/secret/folder: Milvus says: no")

    monkeypatch.setattr(service._batches["first"], "find", fails)
    answer = client.post("/search", json={"id": GREEN})
    assert answer.status_code == 503
    assert "secret" not in answer.text
    assert answer.headers["retry-after"] == "1"


def test_pictures_are_served_by_id(client: TestClient, root: Path) -> None:
    answer = client.get(f"/images/{GREEN}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content == png(root)
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    small = client.get(f"/images/{GREEN}", params={"size": 160})
    assert (small.status_code, small.headers["content-type"]) == (200, "image/webp")
    assert client.get(f"/images/{GREEN}", params={"size": 160}).content == small.content
    assert client.get(f"/images/{GREEN}", params={"size": 161}).status_code == 422
    assert client.get(f"/images/{RED}", params={"catalog": "second"}).status_code == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("../secret.png", 404),
        ("../secret.txt", 404),
        ("words.png", 415),
        ("link.png", 404),
        ("gone.png", 404),
        ("/etc/passwd", 404),
    ],
)
@pytest.mark.parametrize("size", [{}, {"size": 160}])
def test_rows_that_point_elsewhere_are_not_served(client: TestClient, path: str, status: int, size: dict) -> None:
    answer = client.get(f"/images/{image_id(path)}", params=size)
    assert answer.status_code == status
    assert SECRET not in answer.text


TRAVERSALS = [
    "/images/../secret.txt",
    "/images/..%2fsecret.txt",
    "/images/%2e%2e%2fsecret.txt",
    "/images/..%5csecret.txt",
    "/images/....//secret.txt",
    "/images/%252e%252e%252fsecret.txt",
    "/images/..%c0%afsecret.txt",
    "/images//etc/passwd",
    "/images/%00",
    f"/images/{GREEN}%00.png",
    f"/images/{GREEN}/../../secret.txt",
    "//etc/passwd",
    "/..%2f..%2fetc/passwd",
    "/static/../../secret.txt",
    *(
        f"{PAGE}{prefix}{path}"
        for prefix in ("/file=", "/gradio_api/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/")
        for path in ("/etc/passwd", "../../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "{secret}")
    ),
    f"{PAGE}/gradio_api/proxy=http://127.0.0.1:7860/health",
    f"{PAGE}/gradio_api/stream/x/y/0/playlist.m3u8",
    f"{PAGE}/gradio_api/upload_progress?upload_id=x",
    f"{PAGE}/custom_component/x/client/component/..%2f..%2fsecret.txt",
    f"{PAGE}/gradio_api/deep_link",
    f"{PAGE}/monitoring",
]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_of_a_request_is_followed(service: Service, root: Path, path: str) -> None:
    """Sent as it is: a client library would tidy it up."""
    status, body = raw(make_app(service), path.replace("{secret}", str(root.parent / "secret.txt")))
    assert status in (404, 422)
    assert SECRET.encode() not in body and b"root:" not in body


def raw(app: Any, target: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Speak ASGI, as a server does for exactly this request line."""
    import asyncio
    from urllib.parse import unquote

    path, _, query = target.partition("?")
    scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method}
    scope |= {"scheme": "http", "path": unquote(path), "raw_path": path.encode(), "query_string": query.encode()}
    pairs = {"host": "127.0.0.1:7860", "content-length": str(len(body)), **headers}
    scope["headers"] = [(name.replace("_", "-").encode(), value.encode()) for name, value in pairs.items()]
    scope |= {"root_path": "", "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 7860)}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def asked() -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if not messages:
                await asyncio.sleep(20)
            return messages.pop() if messages else {"type": "http.disconnect"}

        await asyncio.wait_for(app(scope, receive, send), 20)

    asyncio.run(asked())
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def all_routes(routes: list[Any], prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every path of an application, and of those mounted in it, with its methods."""
    for route in routes:
        if isinstance(route, Mount):
            yield from all_routes(route.routes, prefix + route.path)
        elif hasattr(route, "path"):
            yield prefix + route.path, set(route.methods or {"GET"})
        else:  # a router included in another
            inner = getattr(route, "original_router", None) or getattr(route, "router", None)
            assert inner is not None, f"what is {route!r}?"
            yield from all_routes(inner.routes, prefix + getattr(getattr(route, "include_context", None), "prefix", ""))


def test_every_route_asks_for_the_token_and_none_takes_a_path(service: Service, root: Path) -> None:
    guard = make_app(service, token=TOKEN)
    routes = sorted((path, method) for path, methods in all_routes(guard.app.routes) for method in methods)  # type: ignore[attr-defined]
    paths = {path for path, _ in routes}
    assert {"/search", "/images/{id}", f"{PAGE}/", f"{PAGE}/config"} <= paths
    assert any("queue/join" in path for path in paths) and any("file=" in path for path in paths)  # Gradio's own
    secret, public = str(root.parent / "secret.txt"), {"/login"}
    for path, method in routes:
        for filled in {fill(path, secret), fill(path, "..%2f..%2f..%2f..%2fetc%2fpasswd"), fill(path, "x")}:
            if path not in public:
                assert raw(guard, filled, method)[0] == 401, path
            assert raw(guard, filled, method, authorization="Bearer of-something-else")[0] in (
                {401, 429} if path not in public else {200, 401, 422}
            )
            status, body = 0, b""
            if "heartbeat" not in path and "queue/data" not in path:  # streams without an end
                status, body = raw(guard, filled, method, authorization=f"Bearer {TOKEN}")
                assert status < 500, (path, method, body)
            assert SECRET.encode() not in body and b"root:" not in body
            if "{" in path and ":path}" in path:
                assert status == 404, path


def fill(path: str, value: str) -> str:
    import re

    return re.sub(r"\{[^}]*\}", lambda _: value, path)


def test_every_route_has_a_limit_of_bytes(service: Service) -> None:
    guard = make_app(service)
    for path in sorted({path for path, _ in all_routes(guard.app.routes)}):  # type: ignore[attr-defined]
        status, _ = raw(guard, fill(path, "x"), "POST", bytes(QUICK.upload_bytes * 4 // 3 + 100_000))
        assert status in (404, 413), path
    for path in (f"{PAGE}/gradio_api/queue/join", "/login", f"{PAGE}/config"):
        assert raw(guard, path, "POST", bytes(100_000))[0] == 413


def test_gradio_reads_no_file_that_a_request_names(client: TestClient, service: Service, root: Path) -> None:
    """A component's value that says it is a file would be copied to where it can be read, if it was believed."""
    secret = {"path": str(root.parent / "secret.txt"), "meta": {"_type": "gradio.FileData"}}
    config = client.get(f"{PAGE}/config").json()
    for dependency in config["dependencies"]:
        data = [secret] + [None] * (len(dependency["inputs"]) - 1)
        ask = {"data": data, "fn_index": dependency["id"], "session_hash": "abc", "trigger_id": None}
        assert client.post(f"{PAGE}/gradio_api/queue/join", json=ask).status_code == 200
    with client.stream("GET", f"{PAGE}/gradio_api/queue/data", params={"session_hash": "abc"}) as stream:
        said = "".join(stream.iter_text())
    assert said.count("process_completed") == len(config["dependencies"])
    assert SECRET not in said and "Traceback" not in said and "orthoproxy/" not in said
    for path in (f"{PAGE}/gradio_api/upload", f"{PAGE}/gradio_api/run/look", f"{PAGE}/gradio_api/component_server"):
        assert client.post(path, json={}).status_code == 404


def test_the_page_is_gradio_and_names_no_other_host(client: TestClient) -> None:
    answer = client.get("/", follow_redirects=True)
    assert answer.status_code == 200 and "gradio" in answer.text
    head = answer.text.split("</head>")[0]
    for attribute in ("src=", "href="):
        assert f'{attribute}"http' not in head.replace(HERE, ""), attribute
    assert client.get(f"{PAGE}/config").json()["analytics_enabled"] is False


def test_logging_in_once(service: Service) -> None:
    with client_of(make_app(service, token=TOKEN)) as client:
        assert client.get("/catalogs").status_code == 401
        assert "Log in" in client.get("/", headers={"accept": "text/html"}).text
        assert client.post("/login", data={"token": "something-else"}).status_code == 401
        answer = client.post("/login", data={"token": TOKEN}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, f"{PAGE}/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
        assert client.get("/catalogs").status_code == 200  # by the cookie
        assert client.get(f"{PAGE}/").status_code == 200
        client.post("/logout")
        client.cookies.clear()
        assert client.get("/catalogs").status_code == 401
        assert client.get("/catalogs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        wrong = [client.post("/login", data={"token": f"guess number {n}"}).status_code for n in range(12)]
        assert wrong.count(401) < 12 and wrong[-1] == 429


def test_the_login_page_asks_nobody_else(service: Service) -> None:
    with client_of(make_app(service, token=TOKEN)) as client:
        page = client.get("/login")
    assert page.status_code == 200 and "http" not in page.text.replace("</html>", "").replace("charset", "")


def test_uploads_are_kept_for_the_page(client: TestClient, service: Service, root: Path) -> None:
    key = client.post("/uploads", files={"image": png(root)}).json()["upload"]
    assert len(key) >= 20
    for name in ("first", "second"):
        kept = [result.id for result in service.search_upload(key, name, k=3).results]
        assert kept == [result.id for result in service.search_picture(png(root), name, k=3).results]
    with pytest.raises(Refused, match="choose it again"):
        service.search_upload("x" * 22, "first")
    assert client.post("/uploads", files={"image": b"words"}).status_code == 415
    assert client.post("/uploads", files={"image": png(root)}, data={"k": "1"}).status_code == 422
    assert client.post("/uploads", json={}).status_code == 415


def test_uploads_and_thumbnails_used_last_are_kept(
    service: Service, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(service.thumbnail(GREEN, "first", 24))
    monkeypatch.setattr("orthoproxy.server.service.UPLOADS_KEPT", 2)
    monkeypatch.setattr("orthoproxy.server.service.THUMBNAIL_BYTES", int(2.5 * size))
    small = Service({"first": service.shelf("first").catalog}, list(service.models.values()), QUICK)
    try:
        first, second = small.keep(png(root)), small.keep(png(root))
        assert small.search_upload(first, None, k=1).results
        third = small.keep(png(root))
        assert small.search_upload(first, None, k=1).results and small.search_upload(third, None, k=1).results
        with pytest.raises(Refused, match="choose it again"):
            small.search_upload(second, None)
        made, make = [], small.decoders.thumbnail
        monkeypatch.setattr(small.decoders, "thumbnail", lambda *args: made.append(args) or make(*args))
        greens = [image_id(path) for path in GREENS[:3]]
        for turn in (0, 1, 0, 2, 0, 2, 1):
            assert small.thumbnail(greens[turn], None, 24) == service.thumbnail(greens[turn], "first", 24)
        assert len(made) == 4  # 0, 1, 2, and 1 again, for which there was no room beside 0 and 2
    finally:
        small.decoders.close()


def test_catalogs_are_listed(client: TestClient, service: Service) -> None:
    found = client.get("/catalogs").json()
    assert [catalog["name"] for catalog in found] == ["first", "second"]
    assert found[1] == {
        "name": "second",
        "images": 19,
        "labels": 4,
        "dim": 8,
        "model": service.shelf("second").catalog.model,
        "takes_images": True,
    }
    assert client.get("/health").json() == {"status": "ok"}


def test_a_catalog_without_its_model_is_searched_by_id(service: Service, root: Path) -> None:
    alone = Service({"first": service.shelf("first").catalog}, [], QUICK)
    try:
        assert alone.search_id(GREEN, None, k=2).results
        with pytest.raises(Refused) as caught:
            alone.search_picture(png(root), None)
        assert caught.value.status == 422
    finally:
        alone.decoders.close()


def test_a_model_that_has_changed_is_refused(service: Service, tmp_path: Path, root: Path) -> None:
    make_model(5).save(tmp_path / "model")
    model = make_model(4)
    with make_catalog(tmp_path / "catalog", model, root, ["green/0.png"]) as catalog:
        catalog.model_path = str(tmp_path / "model")
        with pytest.raises(InputError, match="index again"):
            Service({"catalog": catalog}, [], QUICK)


def test_many_clients_at_once_get_what_one_gets_from_one_thread(
    client: TestClient, service: Service, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = client.post("/search", files={"image": png(root)}).json()["results"]
    answers: list[Any] = []
    model = service.shelf(None).model
    assert isinstance(model, Embedder)
    embed, embedding = model.embed, set()
    monkeypatch.setattr(model, "embed", lambda views: embedding.add(threading.get_ident()) or embed(views))

    def ask() -> None:
        for _ in range(3):
            answers.append(client.post("/search", files={"image": png(root)}).json())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 24
    for answer in answers:
        assert [result["id"] for result in answer["results"]] == [result["id"] for result in expected]
    assert len(embedding) == 1  # PyTorch keeps memory for each thread that calls it


def test_the_description_is_complete(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    assert set(description["paths"]) == {"/health", "/catalogs", "/search", "/uploads", "/images/{id}"}
    for path in description["paths"].values():
        for operation in path.values():
            assert operation["summary"] and operation["description"]
            assert {"200", "401", "403", "429", "503"} <= set(operation["responses"])
    bodies = description["paths"]["/search"]["post"]["requestBody"]["content"]
    assert set(bodies) == {"application/json", "multipart/form-data"}


ASKING = [("/search", "POST"), ("/uploads", "POST"), ("/images/{id}", "GET")]
OPERATIONS = [("/health", "GET"), ("/catalogs", "GET"), *ASKING]
CASES = [(GenerationMode.POSITIVE, *operation) for operation in OPERATIONS]
CASES += [(GenerationMode.NEGATIVE, *operation) for operation in ASKING]  # the others take nothing that could be wrong


@pytest.fixture(scope="module")
def api(service: Service) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", make_app(service), headers={"host": "127.0.0.1:7860"})


@pytest.mark.parametrize(("mode", "path", "method"), CASES)
def test_requests_of_every_kind_get_what_is_described(api: Any, mode: GenerationMode, path: str, method: str) -> None:
    assert set(OPERATIONS) == {
        (path, method.upper()) for path, operations in api.raw_schema["paths"].items() for method in operations
    }
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    rejected = [negative_data_rejection] if mode == GenerationMode.NEGATIVE else []
    seen = set()

    @hypothesis.given(case=api[path][method].as_strategy(mode))
    @hypothesis.settings(max_examples=60, suppress_health_check=list(hypothesis.HealthCheck))
    def check(case: Any) -> None:
        answer = case.call(headers={"host": "127.0.0.1:7860"})
        in_form = case.media_type == "multipart/form-data"  # which cannot tell a list of one from what is in it
        case.validate_response(answer, checks=checks if in_form else [*checks, *rejected])
        seen.add(answer.status_code)
        assert answer.status_code == 200 or set(answer.json()) == {"detail"}

    check()
    assert seen


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_other_methods_are_refused(client: TestClient, path: str, method: str) -> None:
    for other in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS"} - {method}:
        assert client.request(other, path.replace("{id}", GREEN)).status_code == 405

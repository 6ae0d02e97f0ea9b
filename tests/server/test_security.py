"""Host, origin, token, path and body size are checked before a request reaches the application."""

import base64

import pytest
from errors import error_of
from serving import TOKEN
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from orthoproxy.server.limits import RequestError
from orthoproxy.server.security import SecurityMiddleware, allowed_hosts
from orthoproxy.server.serve import check_token


async def echo(request: Request) -> PlainTextResponse:
    try:
        return PlainTextResponse(str(len(await request.body())))
    except RequestError as error:
        return PlainTextResponse(error.problem, error.status)


def client_for(host: str = "127.0.0.1", names: tuple[str, ...] = (), token: str | None = None) -> TestClient:
    """A client of an application that answers with the size of the body; other paths exist, but are not allowed."""
    app = Starlette(routes=[Route(path, echo, methods=["GET", "POST"]) for path in ("/here", "/hidden")])
    app.router.routes.append(WebSocketRoute("/here", lambda websocket: websocket.accept()))
    hosts = allowed_hosts(host, names)
    app.add_middleware(
        SecurityMiddleware, hosts=hosts, token=token, paths="/here", body_limits={"/here": 10}, body_seconds=60
    )
    return TestClient(app, base_url="http://127.0.0.1:7860")


def statuses(client: TestClient, name: str, *values: str) -> list[int]:
    return [client.get("/here", headers={name: value.encode("latin-1")}).status_code for value in values]


def test_other_host_names_are_rejected_as_dns_rebinding_sends_them() -> None:
    ours = ["127.0.0.1:7860", "localhost", "LocalHost:1", "[::1]:7860"]
    others = ["evil.example", "127.0.0.1.evil.example", "user@127.0.0.1", "192.168.0.7:7860", "", "[::1"]
    assert statuses(client_for(), "host", *ours) == [200] * 4
    assert statuses(client_for(), "host", *others) == [400] * 6
    assert statuses(client_for(names=("search.example",)), "host", "search.example", "evil.example") == [200, 400]
    everywhere = client_for("0.0.0.0", ("search.example",))
    assert statuses(everywhere, "host", "search.example", "localhost", "evil.example") == [200, 200, 400]
    assert statuses(client_for("0.0.0.0"), "host", "10.0.0.7", "any.example") == [200, 200]  # there must be a token
    assert statuses(client_for("fe80::1"), "host", "[fe80::1]:80", "localhost") == [200, 400]
    assert statuses(client_for(names=("*.a.example",)), "host", "x.a.example:80", "a.example") == [200, 400]
    refused = client_for().get("/here", headers={"host": "evil.example"}).json()["error"]
    assert refused["hint"]


@pytest.mark.parametrize("name", ["a.example:8443", "https://a.example", "a.example/search", "*", ""])
def test_a_name_is_a_host_alone(name: str) -> None:
    error = error_of(allowed_hosts, "127.0.0.1", ["b.example", name])
    assert error.field == "names" and error.expected


def test_a_proxy_may_leave_out_the_port_of_the_host() -> None:
    client = client_for(names=("a.example",))
    for host, origin, status in [
        ("a.example", "https://a.example:8443", 200),
        ("a.example:443", "https://a.example", 200),
        ("a.example:7860", "https://a.example", 403),
        ("a.example", "https://b.example", 403),
        ("127.0.0.1:7860", "https://a.example", 403),  # a proxy that does not pass the host
    ]:
        assert client.get("/here", headers={"host": host, "origin": origin}).status_code == status


def test_pages_of_other_origins_may_only_link() -> None:
    client = client_for()
    same, foreign = "http://127.0.0.1:7860", ["http://127.0.0.1:8000", "http://evil.example", "null", "http://["]
    assert statuses(client, "origin", same, *foreign) == [200, 403, 403, 403, 403]
    assert statuses(client, "sec-fetch-site", "same-origin", "none", "same-site", "cross-site") == [200, 200, 403, 403]
    assert client.get("/here", headers={"origin": "null"}).json()["error"]["hint"]
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/here", headers=link).status_code == 200
    assert client.post("/here", headers=link).status_code == 403
    assert client.get("/here", headers=link | {"sec-fetch-dest": "iframe"}).status_code == 403


def basic(password: str) -> str:
    return f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"


def test_the_token_is_required_as_bearer_or_password() -> None:
    client = client_for(token=TOKEN)
    assert statuses(client, "authorization", f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN)) == [200] * 3
    wrong = ["", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Token {TOKEN}", basic("guess"), "Basic é"]
    assert statuses(client, "authorization", *wrong) == [401] * 7
    answer = client.get("/nowhere")  # which paths exist is not told either
    assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic")


def test_only_listed_paths_and_http_reach_the_application() -> None:
    client = client_for()
    assert [client.get(path).status_code for path in ("/here", "/hidden", "/here/", "/HERE")] == [200, 404, 404, 404]
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/here"):
        pass


def test_bodies_are_bounded_with_and_without_a_declared_length() -> None:
    client = client_for()
    for send in (b"x".__mul__, lambda size: iter([b"x"] * size)):
        assert client.post("/here", content=send(10)).text == "10"
        assert client.post("/here", content=send(11)).status_code == 413
    assert client.post("/here", headers={"content-length": "-1"}).status_code == 413


def test_every_response_has_the_security_headers() -> None:
    client = client_for()
    for answer in (client.get("/here"), client.get("/hidden"), client.get("/here", headers={"origin": "null"})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy and "http" not in policy


@pytest.mark.parametrize(("host", "token"), [
    *((host, None) for host in ("0.0.0.0", "192.168.0.7", "::", "example.org")),
    *(("127.0.0.1", token) for token in ("", "short", "a token \n of two lines", "ein-Schlüssel-mit-Umlaut")),
])  # fmt: skip
def test_an_address_that_others_reach_needs_a_token_and_weak_tokens_are_errors(host: str, token: str | None) -> None:
    assert error_of(check_token, host, token).field == "token"
    check_token(host, TOKEN)
    for loopback in ("127.0.0.1", "[::1]", "localhost"):
        check_token(loopback, None)

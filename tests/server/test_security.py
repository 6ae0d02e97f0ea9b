"""What stands before the routes, with applications of a few lines behind it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest

from orthoproxy.core.errors import InputError
from orthoproxy.server.limits import Limits, Pace, Refused, Turns
from orthoproxy.server.security import Door, Guard, check_token, is_everywhere, names_of

TOKEN = "a-token-for-the-tests"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the number of bytes that came."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"server", b"secret/1.0")]})
    await send({"type": "http.response.body", "body": str(size).encode()})


def guarded(app: Any = echo, token: str | None = None, **options: Any) -> Guard:
    options = {"names": names_of("127.0.0.1"), "paths": ["/here"], "public": ["/login"], **options}
    options["paths"] = [*options["paths"], "/login"]
    return Guard(app, Door(token, 7860), **options)


def ask(guard: Guard, path: str = "/here", method: str = "GET", chunks: Any = (b"",), **headers: Any) -> tuple:
    """Send a request; status, headers and body of the answer."""
    return asyncio.run(asking(guard, path, method, chunks, **headers))


async def asking(
    guard: Guard,
    path: str = "/here",
    method: str = "GET",
    chunks: Any = (b"",),
    client: str = "127.0.0.1",
    **headers: Any,
) -> tuple:
    headers = {"host": "127.0.0.1:7860", **{name.replace("_", "-"): value for name, value in headers.items()}}
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items() if value is not None]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs, "client": (client, 5)}
    parts, sent = iter(chunks), []
    last = object()

    async def receive() -> dict:
        part = next(parts, last)
        if part is last or part is None:  # the client goes silent
            await asyncio.sleep(30)
        return {"type": "http.request", "body": part, "more_body": part is not chunks[-1]}

    async def send(message: Any) -> None:
        sent.append(message)

    await guard(scope, receive, send)
    assert [message["type"] for message in sent].count("http.response.start") == 1
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "localhost", "[::1]:7860", "LocalHost:1"])
def test_names_of_this_machine_are_served(host: str) -> None:
    assert ask(guarded(), host=host)[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]"])
def test_everywhere_has_more_than_one_spelling(host: str) -> None:
    assert is_everywhere(host)
    assert not is_everywhere("127.0.0.1")
    assert "localhost" in names_of(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example:7860",
        "localhost@evil.example",
        "user@127.0.0.1",
        "192.168.0.7:7860",
        "",
        "[::1",
        "127.0.0.1:x",
        "127.0.0.1/path",
        None,
    ],
)
def test_other_names_are_refused_as_a_rebound_one_would_send_them(host: str | None) -> None:
    assert ask(guarded(), host=host)[0] == 403


def test_two_hosts_are_refused() -> None:
    sent: list = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/here", "client": None}
    pairs = [(b"host", b"127.0.0.1:7860"), (b"host", b"localhost:7860")]
    asyncio.run(guarded()({**scope, "headers": pairs}, echo, send))
    assert sent[0]["status"] == 403


def test_everywhere_takes_addresses_but_no_foreign_names() -> None:
    guard = guarded(names=names_of("0.0.0.0", ["search.example"]), any_address=True)
    hosts = ["192.168.0.7:7860", "[fe80::1]:7860", "search.example", "evil.example"]
    assert [ask(guard, host=host)[0] for host in hosts] == [200, 200, 200, 403]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}, 403),
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}, 200),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}, 403),
    ],
)
def test_pages_of_other_origins_may_follow_links_only(headers: dict[str, str], status: int) -> None:
    assert ask(guarded(), **headers)[0] == status


def test_a_foreign_page_may_not_post_by_navigating() -> None:
    headers = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert ask(guarded(), method="POST", **headers)[0] == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"bearer {TOKEN}"}, 200),
        ({"authorization": f"Bearer {TOKEN}x"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer \xff\xfe"}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"cookie": "orthoproxy-7860=guess"}, 401),
        ({"cookie": "orthoproxy-7860"}, 401),
        ({"cookie": f"orthoproxy-7860={TOKEN}"}, 401),  # the token itself is no cookie
    ],
)
def test_a_token_is_asked_for(headers: dict[str, str], status: int) -> None:
    assert ask(guarded(token=TOKEN), **headers)[0] == status


def test_what_needs_a_token_is_not_told_apart_from_what_is_not_there() -> None:
    guard = guarded(token=TOKEN)
    assert ask(guard, "/here")[0] == ask(guard, "/nowhere")[0] == 401
    assert ask(guard, "/login")[0] == 200


def test_the_cookie_opens_and_keeps_to_itself() -> None:
    guard = guarded(token=TOKEN)
    cookie = guard.door.set_cookie(secure=True)
    assert TOKEN not in cookie
    assert {"HttpOnly", "SameSite=Strict", "Secure", "Path=/"} < set(cookie.split("; "))
    assert ask(guard, cookie=f"other=1; {cookie.split(';')[0]}")[0] == 200
    assert ask(guarded(token=TOKEN), cookie=cookie.split(";")[0])[0] == 401  # of another start


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr("orthoproxy.server.security.hmac.compare_digest", compare)
    door = Door(TOKEN, 7860)
    assert [door.knows(text) for text in ("", "x" * 1000, TOKEN)] == [False, False, True]
    assert compared == [(32, 32)] * 3  # digests: of one length, whatever was given


def test_guessing_is_slow() -> None:
    guard = guarded(token=TOKEN, limits=Limits(failures_per_minute=3))
    guesses = [ask(guard, authorization=f"Bearer guess-{number}")[0] for number in range(5)]
    assert guesses == [401, 401, 401, 429, 429]
    assert ask(guard, authorization=f"Bearer {TOKEN}")[0] == 200  # who knows it is not kept out
    assert ask(guard, "/login", "POST")[0] == 429
    assert ask(guard, "/login", "POST", client="10.0.0.9")[0] == 200


def test_a_browser_is_led_to_the_login() -> None:
    status, headers, _ = ask(guarded(token=TOKEN), accept="text/html,*/*")
    assert (status, headers["location"]) == (303, "/login")
    assert ask(guarded(token=TOKEN), method="POST", accept="text/html")[0] == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::", "example.org"])
def test_another_address_needs_a_token(host: str) -> None:
    with pytest.raises(InputError, match="needs a token"):
        check_token(host, None)
    check_token(host, TOKEN)


@pytest.mark.parametrize("token", ["", "short", "a token \n of two lines", "ein-Schlüssel-mit-Umlaut"])
def test_tokens_that_are_easily_guessed_or_cannot_be_sent_are_refused(token: str) -> None:
    with pytest.raises(InputError, match="--token"):
        check_token("127.0.0.1", token)


def test_paths_that_are_not_listed_do_not_reach_the_application() -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("reached")

    for path in ("/nowhere", "/here/..", "/here\n", "/here/", "//here", "/HERE", ""):
        assert ask(guarded(never), path)[0] == 404


def test_a_body_of_too_many_bytes_is_not_taken() -> None:
    guard = guarded(body_limit=lambda path: 10)
    assert ask(guard, chunks=[b"12345", b"67890"])[0::2] == (200, b"10")
    assert ask(guard, chunks=[b"12345", b"678901"])[0] == 413
    assert ask(guard, content_length="11")[0] == 413
    assert ask(guard, content_length="-1")[0] == 413
    assert ask(guard, content_length="1e3")[0] == 413


def test_a_body_that_is_too_large_is_told_whatever_the_application_makes_of_it() -> None:
    async def swallows(scope: Any, receive: Any, send: Any) -> None:
        status = 200
        try:
            while (await receive())["more_body"]:
                pass
        except Exception:
            status = 400
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"could not read the body"})

    status, _, body = ask(guarded(swallows, body_limit=lambda path: 10), chunks=[b"1" * 8, b"2" * 8, b"3"])
    assert status == 413
    assert "10 bytes" in json.loads(body)["detail"]


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    guard = guarded(limits=Limits(body_seconds=0.05))
    start = time.monotonic()
    assert ask(guard, chunks=[b"123", None])[0] == 408
    assert time.monotonic() - start < 5


def test_an_answer_may_take_longer_than_a_body() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        leaving = asyncio.ensure_future(receive())  # as streams watch for the client to go
        await asyncio.sleep(0.2)
        assert not leaving.done()
        leaving.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    assert ask(guarded(slow, limits=Limits(body_seconds=0.05)))[0] == 200


def test_more_than_the_burst_waits_and_much_more_is_refused() -> None:
    guard = guarded(limits=Limits(requests_per_second=20, burst=5, pace_seconds=0.3))

    async def flood() -> list[int]:
        answers = await asyncio.gather(*(asking(guard) for _ in range(40)))
        return [status for status, _, _ in answers]

    start = time.monotonic()
    statuses = asyncio.run(flood())
    assert 11 <= statuses.count(200) <= 14  # 5 at once, 6 in the next 0.3 seconds, some while they arrive
    assert statuses.count(200) + statuses.count(429) == 40
    assert 0.25 <= time.monotonic() - start < 5
    status, headers, _ = ask(guard)
    assert status in (200, 429) and headers.get("retry-after", "1") == "1"
    assert ask(guard, client="10.0.0.9")[0] == 200  # others do not suffer


def test_addresses_of_a_network_are_one_client_and_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = guarded(limits=Limits(requests_per_second=1, burst=2, pace_seconds=0))
    clients = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1"]
    assert [ask(guard, client=client)[0] for client in clients] == [200, 200, 429, 200]
    monkeypatch.setattr("orthoproxy.server.limits.CLIENTS_KNOWN", 10)
    for number in range(50):
        ask(guard, client=f"10.0.0.{number}")
    assert len(guard._pace._due) == 10


def test_a_pace_recovers() -> None:
    now = [0.0]
    pace = Pace(per_second=10, burst=2, longest=0.0, clock=lambda: now[0])
    assert [pace.delay("a") for _ in range(3)] == [0, 0, None]
    now[0] = 0.1
    assert [pace.delay("a") for _ in range(2)] == [0, None]
    now[0] = 100
    assert [pace.delay("a") for _ in range(3)] == [0, 0, None]


def test_only_so_many_requests_at_once() -> None:
    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.1)
        await echo(scope, receive, send)

    guard = guarded(waits, limits=Limits(requests_at_once=3))

    async def flood() -> list[int]:
        answers = await asyncio.gather(*(asking(guard) for _ in range(8)))
        return sorted(status for status, _, _ in answers)

    assert asyncio.run(flood()) == [200] * 3 + [503] * 5
    assert ask(guard)[0] == 200  # and they are let go


def test_only_so_many_bytes_at_once() -> None:
    go_on = asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        async def reading() -> Any:
            message = await receive()
            await go_on.wait()
            return message

        await echo(scope, reading, send)

    guard = guarded(waits, limits=Limits(bytes_at_once=100))

    async def flood() -> list[int]:
        asked = [asyncio.ensure_future(asking(guard, chunks=[b"x" * 40])) for _ in range(5)]
        await asyncio.sleep(0.05)
        go_on.set()
        return sorted(status for status, _, _ in await asyncio.gather(*asked))

    assert asyncio.run(flood()) == [200, 200, 503, 503, 503]
    assert ask(guard, chunks=[b"x" * 90])[0] == 200  # and they are let go


@pytest.mark.parametrize("begun", [False, True])
def test_a_fault_tells_nothing(begun: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("/secret/path")

    status, _, body = ask(guarded(fails))
    assert status == (200 if begun else 500)
    assert b"secret" not in body and b"Traceback" not in body
    assert "/secret/path" in caplog.text  # but the log does


def test_every_answer_keeps_a_page_to_itself() -> None:
    for status, headers, _ in (ask(guarded()), ask(guarded(), "/nowhere"), ask(guarded(), host="evil.example")):
        assert status in (200, 404, 403)
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "http" not in headers["content-security-policy"]
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


def test_websockets_are_closed() -> None:
    sent: list = []

    async def receive() -> dict:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guarded()({"type": "websocket", "path": "/here", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_turns_come_in_order_and_few_at_once() -> None:
    turns, order, at_work, most = Turns(2, waiting=20, seconds=20), [], [], []
    started = threading.Event()

    def work(number: int) -> None:
        with turns.turn():
            order.append(number)
            at_work.append(number)
            most.append(len(at_work))
            started.wait(10)
            time.sleep(0.005)
            at_work.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for number, thread in enumerate(threads):
        thread.start()
        while len(order) + len(turns._queue) <= number:
            time.sleep(0.001)
    started.set()
    for thread in threads:
        thread.join(20)
    assert sorted(order) == list(range(12)) and max(most) == 2
    assert max(abs(place - number) for place, number in enumerate(order)) <= 1  # two run side by side
    assert turns.free == 2


def test_a_turn_that_does_not_come_is_given_up() -> None:
    turns = Turns(1, waiting=1, seconds=0.05)
    with turns.turn(), pytest.raises(Refused, match="too much"), turns.turn():
        raise AssertionError("there was no turn")
    with turns.turn():  # and none is lost
        pass
    assert turns.free == 1


def test_a_turn_is_handed_on_after_an_error() -> None:
    turns = Turns(1, waiting=1, seconds=1)
    with pytest.raises(RuntimeError), turns.turn():
        raise RuntimeError
    assert turns.free == 1

"""Parsers and the server with slightly changed input: an `InputError` or a response, and nothing else.

The ordinary tests check a few examples, the same each time. ``make fuzz SECONDS=60`` checks new ones, for that many
seconds each.
"""

import base64
import io
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from PIL import Image
from serving import QUICK, client_of, make_catalog, make_images, make_model
from starlette.testclient import TestClient
from targets import EVIL, TARGETS, changed, edits, mutate, substitute, substitutions

from orthoproxy.core.errors import InputError
from orthoproxy.server.app import make_app
from orthoproxy.server.service import Service

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
EXAMPLES = 40
MAX_SECONDS = 10.0  # of CPU time for one input
MAX_BYTES = 2 * 10**9  # on top of what the process has

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, about damaged files


def fuzz(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], share: float = 1.0) -> None:
    """Check as many examples as the tests have time for."""

    def timed(given: Any) -> None:
        start = time.process_time()
        check(given)
        assert time.process_time() - start < MAX_SECONDS

    settings = hypothesis.settings(
        max_examples=100 if SECONDS else max(5, round(EXAMPLES * share)),
        derandomize=not SECONDS,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    test = settings(hypothesis.given(strategy)(timed))
    end = time.monotonic() + SECONDS
    while True:
        test()
        if time.monotonic() >= end:
            return
        hypothesis.seed(random.SystemRandom().getrandbits(64))(test)


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + MAX_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded by Linux' means")
@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_file_is_read_or_an_input_error(name: str, tmp_path, bounded_memory: None, monkeypatch) -> None:
    target, root = TARGETS[name], tmp_path / "root"
    for folder in (root, tmp_path / "elsewhere", tmp_path / "modules"):
        folder.mkdir()
    (tmp_path / "modules" / f"{EVIL}.py").write_text("class X: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    read = target.prepare(root)
    read()  # valid before it is changed
    before, rejected = set(tmp_path.rglob("*")), []

    def check(given: tuple[str, Any]) -> None:
        path, content = root / given[0].removesuffix("#"), (root / given[0].removesuffix("#")).read_bytes()
        try:
            path.write_bytes(changed(content, *given))
            read()
        except InputError as error:
            rejected.append(str(error))
        finally:
            path.write_bytes(content)

    fuzz(target.changes(), check, target.share)
    assert rejected and all(rejected)
    assert EVIL not in sys.modules, "code was imported"
    assert not [path for path in set(tmp_path.rglob("*")) - before if not path.is_relative_to(root)]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("served")
    model, paths = make_model(), make_images(folder / "images", each=2)
    service = Service({"one": make_catalog(folder / "one", model, folder / "images", paths)}, [model], QUICK)
    with client_of(make_app(service)) as client:
        yield client


def requests() -> st.SearchStrategy[tuple[str, str, str, bytes]]:
    """Method, target, content type and body of requests that are nearly valid."""
    out = io.BytesIO()
    Image.new("RGB", (24, 20), "green").save(out, "PNG")
    search = {"image": base64.b64encode(out.getvalue()).decode(), "k": 3, "filter": 'label != "x"', "diverse": True}
    by_id = {"id": "0" * 32, "k": 3, "catalog": None}
    boundary = b"--B\r\nContent-Disposition: form-data; name="
    form = boundary + b'"image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + out.getvalue() + b"\r\n"
    form += boundary + b'"k"\r\n\r\n3\r\n--B--\r\n'
    tokens = [b"--B", b"\r\n\r\n", b'"k":', b"1e400", b"\\ud800", b"NaN", b"boundary"]
    substituted = st.tuples(st.sampled_from([search, by_id]), substitutions()).map(
        lambda x: json.dumps(substitute(x[0], *x[1])).encode("utf-8", "surrogatepass")
    )
    mutated = st.tuples(st.sampled_from([json.dumps(search).encode(), form]), edits(tokens)).map(lambda x: mutate(*x))
    paths = ["/search"] * 4 + ["/uploads"] * 2 + ["/images/" + "0" * 32, "/catalogs", "/health", "/page/"]
    paths += ["/images/..%2f..%2fx", "/images/%00", "//x", "/page/config", "/openapi.json"]
    queries = ["", "?size=160", "?catalog=%00", "?size=1e9", "?catalog=" + "x" * 300, "?size=%ff"]
    return st.tuples(
        st.sampled_from(["POST"] * 5 + ["GET", "PUT", "HEAD", "OPTIONS"]),
        st.tuples(st.sampled_from(paths), st.sampled_from(queries)).map("".join),
        st.sampled_from(["application/json", "multipart/form-data; boundary=B", "multipart/form-data", "", "é"]),
        st.one_of(substituted, mutated),
    )


def test_a_changed_request_gets_a_response(client: TestClient) -> None:
    statuses = []

    def check(given: tuple[str, str, str, bytes]) -> None:
        method, target, content_type, body = given
        headers = {"content-type": content_type.encode("latin-1")}
        answer = client.request(method, f"{client.base_url}{target}", content=body, headers=headers)
        assert answer.status_code < 500 and "Traceback" not in answer.text
        statuses.append(answer.status_code)

    fuzz(requests(), check, share=3)
    assert {200, 422} <= set(statuses)

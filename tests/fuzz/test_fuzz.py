"""Readers of files and requests under small changes of what is right: bad input, or an answer, and nothing else.

In the ordinary tests each target has some seconds and always the same examples. ``make fuzz SECONDS=60`` gives each
target that many seconds, and new examples each time.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck
from serving import QUICK, client_of, make_catalog, make_images, make_model
from starlette.testclient import TestClient
from targets import EVIL, TARGETS, inputs, requests, run

from orthoproxy.server.app import make_app
from orthoproxy.server.service import Service

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))  # of each target; 0: the same few examples each time
EXAMPLES = 60
SLOWEST = 10.0  # seconds of computing for one input
MOST_MEMORY = 2 * 10**9  # bytes that a target may take on top of what the process has

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, about damaged files; the command line shows none


def settings(examples: int, fixed: bool) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples,
        derandomize=fixed,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )


def fuzz(strategy: hypothesis.strategies.SearchStrategy, check: Any, share: float) -> int:
    """Check examples, for so long or so many; return how many there were."""
    count = 0

    def counted(given: Any) -> None:
        nonlocal count
        count += 1
        start = time.process_time()
        check(given)
        assert time.process_time() - start < SLOWEST, "took too long"

    test = hypothesis.given(strategy)(counted)
    if not SECONDS:
        settings(max(5, round(EXAMPLES * share)), fixed=True)(test)()
        return count
    end, test = time.monotonic() + SECONDS, settings(100, fixed=False)(test)
    while time.monotonic() < end:
        hypothesis.seed(random.SystemRandom().getrandbits(64))(test)()
    return count


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def bounded() -> Iterator[None]:
    """A target may take so much memory more, where the system holds it to that."""
    try:
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii")
    except (ImportError, OSError):
        yield
        return
    held = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:"))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + MOST_MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_file_is_read_or_refused(
    name: str, tmp_path: Path, bounded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, root, elsewhere = TARGETS[name], tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root, elsewhere, tmp_path / "modules"):
        folder.mkdir()
    (tmp_path / "modules" / f"{EVIL}.py").write_text("class X: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.chdir(elsewhere)
    read = target.prepare(root)
    read()  # as it was made, it is right
    before = everything(tmp_path)
    target.refused = target.accepted = 0
    count = fuzz(inputs(target), lambda given: run(target, root, read, given), target.share)
    assert EVIL not in sys.modules, "code was imported"
    new = {path for path in everything(tmp_path) - before if not path.startswith("root/")}
    assert not new, f"files were made: {new}"
    assert target.refused + target.accepted == count and (target.refused or name == "caches")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("served")
    model, paths = make_model(), make_images(folder / "images", each=2)
    service = Service({"one": make_catalog(folder / "one", model, folder / "images", paths)}, [model], QUICK)
    with client_of(make_app(service)) as client:
        yield client


def test_a_changed_request_gets_an_answer(client: TestClient) -> None:
    statuses = [client.get("/health").status_code]

    def ask(given: dict[str, Any]) -> None:
        path = given["path"].decode("latin-1") if isinstance(given["path"], bytes) else given["path"]
        headers = {"content-type": given["kind"].encode()} if given["kind"] else {}
        try:
            request = client.build_request(
                given["method"], path + given["query"], content=given["body"], headers=headers
            )
        except Exception:  # an address that the client itself cannot write down
            hypothesis.reject()
        if request.url.host != "127.0.0.1":  # //x is another server's address
            hypothesis.reject()
        answer = client.send(request, follow_redirects=False)
        assert answer.status_code < 500, f"{answer.status_code}: {answer.text[:300]}"
        assert "Traceback" not in answer.text
        statuses.append(answer.status_code)

    fuzz(requests(), ask, share=2.0)
    assert min(statuses) == 200 and max(statuses) >= 400

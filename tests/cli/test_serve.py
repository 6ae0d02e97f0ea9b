"""orthoproxy serve, as it is started: an address, answers, Ctrl-C; and what it refuses."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from command_line import interrupted_at
from errors import input_error
from serving import TOKEN, make_catalog, make_images, make_model

from orthoproxy.server.serve import name_catalogs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog, with its model beside it."""
    folder = tmp_path_factory.mktemp("serve")
    paths, model = make_images(folder / "images", each=2), make_model()
    model.save(folder / "model")
    make_catalog(folder / "squares", model, folder / "images", paths, str(folder / "model")).close()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(folder: Path, request: pytest.FixtureRequest, stop: signal.Signals) -> None:
    environment = {**os.environ, "ORTHOPROXY_TOKEN": TOKEN}
    command = [sys.executable, "-m", "orthoproxy", "serve", str(folder / "squares"), "--port", "0"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    request.addfinalizer(process.kill)
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said.startswith("http://127.0.0.1:") and TOKEN not in said
    picture = (folder / "images" / "red" / "1.png").read_bytes()
    with httpx.Client(base_url=said.split()[0], headers={"authorization": f"Bearer {TOKEN}"}, timeout=120) as client:
        answer = client.post("/search", files={"image": picture})
        assert answer.status_code == 200 and answer.json()["results"][0]["path"] == "red/1.png"
        assert "server" not in answer.headers
        seconds = [client.get("/health").elapsed.total_seconds() for _ in range(20)]
    assert min(seconds) < 0.03  # a small answer does not wait for the client's acknowledgement, 40 ms
    process.send_signal(stop)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "", "")


@pytest.mark.parametrize("module", ["uvicorn", "gradio", "multiprocessing.popen_forkserver"])
def test_ctrl_c_while_it_starts_is_one_line(folder: Path, module: str) -> None:
    arguments = ["serve", str(folder / "squares"), "--port", "0"]
    assert interrupted_at(module, arguments) == (130, "", "orthoproxy: interrupted\n")


@pytest.mark.parametrize(("arguments", "field"), [
    (["squares", "--host", "0.0.0.0"], "token"), (["squares", "--token", "short"], "token"),
    (["squares", "--port", "70000"], "port"), (["squares", "--port", "TAKEN"], "port"),
    (["squares", "--megapixels", "0"], "megapixels"), (["squares", "--name", "https://a.example"], "names"),
    (["squares", "--port", "0", "--model", "nowhere"], None),
    (["nowhere", "--port", "0"], None),
])  # fmt: skip
def test_what_it_refuses(folder: Path, arguments: list[str], field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ORTHOPROXY_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        error = input_error(["serve", *(port if word == "TAKEN" else word for word in arguments)])
    assert error.field == field and (field or "nowhere" in str(error))


def test_catalogs_are_named_by_the_end_of_their_address() -> None:
    addresses = ["a/birds", "b/birds/", "http://host:19530/birds", "http://host:19530", "."]
    assert list(name_catalogs(addresses)) == ["birds", "birds-2", "birds-3", "host", Path.cwd().name]
    assert list(name_catalogs(addresses).values()) == addresses

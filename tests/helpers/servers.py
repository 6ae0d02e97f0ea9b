"""Servers for the tests marked `server`: installed once into the user's cache, started on free ports."""

import os
import re
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orthoproxy"

# these run in an environment of their own, until their input ends: when the tests end, however they do
MILVUS = """
import signal, sys
from milvus import MilvusServer
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
server = MilvusServer()
server.set_base_dir(sys.argv[1])
try:
    server.start()
    print("port", server.listen_port, flush=True)
    sys.stdin.read()
finally:
    server.stop()
"""
S3 = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print("port", server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""
FORWARD = """
import asyncio, sys
async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
async def connect(reader, writer):
    back, forth = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    await asyncio.gather(copy(reader, forth), copy(back, writer))
async def main():
    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    print("port", server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


@contextmanager
def milvus_server(folder: Path) -> Iterator[str]:
    """Start a Milvus server that keeps its data in a folder; give its address; stop it."""
    python = _installed("milvus==2.3.5")
    folder.mkdir(parents=True)
    programs = python.parents[1] / "programs"  # unpacked once, for all starts
    programs.mkdir(exist_ok=True)
    (folder / "bin").symlink_to(programs)
    with _running([str(python), "-c", MILVUS, str(folder)], folder) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def s3_server(folder: Path, bucket: str) -> Iterator[dict[str, str]]:
    """Start an object store with an empty bucket; give the environment variables of its clients; stop it."""
    folder.mkdir(parents=True)
    with _running([str(_installed("moto[s3]==5.2.5", "flask", "flask-cors")), "-c", S3], folder) as port:
        address = f"http://127.0.0.1:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{address}/{bucket}", method="PUT")).close()
        account = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}
        yield {**account, "AWS_ENDPOINT": address, "AWS_ALLOW_HTTP": "true"}


@contextmanager
def forwarded(address: str, folder: Path) -> Iterator[str]:
    """Give another address of a server, which is as if the server was lost once the context ends."""
    host, port = address.rsplit(":", 1)
    with _running([sys.executable, "-c", FORWARD, port], folder) as new:
        yield f"{host}:{new}"


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[int]:
    log = folder / "start.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder
        )
        assert process.stdout is not None and process.stdin is not None
        try:
            words = process.stdout.readline().split()
            assert words[:1] == ["port"], f"the server did not start: {log.read_text()[-2000:]}"
            yield int(words[1])
        finally:
            process.stdin.close()
            assert process.wait(timeout=60) == 0
            process.stdout.close()


def _installed(package: str, *more: str) -> Path:
    """Return the Python of an environment with some packages."""
    place = CACHE / re.sub(r"[^a-z0-9.]+", "-", package)
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not (place / "installed").is_file():
            venv.create(place, with_pip=True, clear=True)
            subprocess.run([place / "bin" / "python", "-m", "pip", "install", "--quiet", package, *more], check=True)
            (place / "installed").touch()
    return place / "bin" / "python"

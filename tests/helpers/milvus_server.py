"""A Milvus server for the tests marked `server`: installed once into the user's cache, started on free ports."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

VERSION = "2.3.5"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orthoproxy" / f"milvus-{VERSION}"

# runs in the server's own environment, until its input ends: when the tests end, however they do
SERVE = """
import sys
from milvus import MilvusServer
server = MilvusServer()
server.set_base_dir(sys.argv[1])
try:
    server.start()
    print("port", server.listen_port, flush=True)
    sys.stdin.read()
finally:
    server.stop()
"""


@contextmanager
def milvus_server(folder: Path) -> Iterator[str]:
    """Start a server that keeps its data in a folder; give its address; stop it.

    The environment of its own is needed since the server's package would take the place of other things named milvus.
    """
    python = _installed()
    folder.mkdir(parents=True)
    (folder / "bin").symlink_to(_binaries())
    command = [str(python), "-c", SERVE, str(folder)]
    log = folder / "start.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder
        )
        assert process.stdout is not None and process.stdin is not None
        try:
            words = process.stdout.readline().split()
            assert words[:1] == ["port"], f"Milvus did not start: {log.read_text()[-2000:]}"
            yield f"http://127.0.0.1:{words[1]}"
        finally:
            process.stdin.close()
            assert process.wait(timeout=60) == 0
            process.stdout.close()


def _installed() -> Path:
    python = CACHE / "bin" / "python"
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{CACHE}.lock"):
        if not (CACHE / "installed").is_file():
            venv.create(CACHE, with_pip=True, clear=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", f"milvus=={VERSION}"], check=True)
            (CACHE / "installed").touch()
    return python


def _binaries() -> Path:
    """Where the server's programs are unpacked, once for all starts."""
    folder = CACHE / "programs"
    folder.mkdir(exist_ok=True)
    return folder


if __name__ == "__main__":  # to look at a server by hand
    with milvus_server(Path(sys.argv[1])) as address:
        print(address)
        input("enter stops it ")

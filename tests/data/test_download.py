"""Downloads from a local server: the published archive or an error, unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orthoproxy.core.errors import InputError
from orthoproxy.data.sources.download import Archive, download, fetch

FILES = {"birds/images.txt": b"1 a.jpg\n", "birds/labels.txt": b"1 1\n", "birds/images/a.jpg": b"\xff\xd8 a bird"}


class Server(ThreadingHTTPServer):
    """Serves one file at every path, and counts requests."""

    content, requests = b"", 0

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(200 if self.server.content else 404)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(files: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in others:
            archive.addfile(info)
    return stream.getvalue()


def offer(server: Server, content: bytes) -> Archive:
    """Let the server have an archive, and describe it."""
    server.content = content
    return Archive(
        name="birds.archive",
        url=f"http://127.0.0.1:{server.server_address[1]}/birds",
        known_hash=f"sha256:{hashlib.sha256(content).hexdigest()}",
        folder="birds",
        lists=("images.txt", "labels.txt"),
        max_bytes=10**6,
        max_files=20,
        page="https://example.org/birds",
        terms="for bird watching only",
    )


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


UNPACKED = {"birds.archive", "birds", "birds/images", *FILES}


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_is_downloaded_once_and_unpacked(
    server: Server, tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]
) -> None:
    archive = offer(server, pack(FILES))
    fetch(archive, tmp_path / "a" / "b")
    assert names_below(tmp_path / "a" / "b") == UNPACKED
    assert (tmp_path / "a/b/birds/images/a.jpg").read_bytes() == FILES["birds/images/a.jpg"]
    (tmp_path / "a/b/birds.archive").unlink()
    for root in (tmp_path / "a/b", tmp_path / "a/b/birds"):  # the readers accept either
        fetch(archive, root)
    assert server.requests == 1


def test_an_archive_that_is_there_already_is_used(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    (tmp_path / archive.name).write_bytes(server.content)
    fetch(archive, tmp_path)
    assert names_below(tmp_path) == UNPACKED and server.requests == 0


def test_what_a_user_has_there_is_not_touched(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    (tmp_path / archive.name).write_bytes(b"half of it")
    with pytest.raises(InputError) as caught:
        fetch(archive, tmp_path)
    assert caught.value.path == tmp_path / archive.name and names_below(tmp_path) == {archive.name}
    (tmp_path / archive.name).unlink()
    (tmp_path / "birds").mkdir()
    with pytest.raises(InputError) as caught:
        fetch(archive, tmp_path)
    assert caught.value.path == tmp_path / "birds" and names_below(tmp_path) == {"birds"} and server.requests == 0


def test_another_file_than_the_published_one_is_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch(replace(offer(server, zipped(FILES)), known_hash="sha256:" + "0" * 64), tmp_path)
    assert "example.org" in str(caught.value.hint) and names_below(tmp_path) == set()


def test_a_missing_file_and_a_missing_server_are_errors(server: Server, tmp_path: Path) -> None:
    archive = offer(server, b"")
    for url in (archive.url, "http://127.0.0.1:1/birds"):
        with pytest.raises(InputError) as caught:
            fetch(replace(archive, url=url), tmp_path)
        assert caught.value.field == "name" and names_below(tmp_path) == set()


def test_a_root_that_cannot_be_a_folder_is_an_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as caught:
        fetch(offer(server, zipped(FILES)), tmp_path / "file")
    assert str(caught.value.path) == str(tmp_path / "file")


def test_a_killed_unpacking_is_repeated(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    (tmp_path / "birds.unpacking" / "birds").mkdir(parents=True)
    (tmp_path / "birds.unpacking" / "birds" / "old.txt").touch()
    fetch(archive, tmp_path)
    assert names_below(tmp_path) == UNPACKED


def link(name: str, to: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def zipped_link() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        info = zipfile.ZipInfo("birds/link")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "../../secret")
    return stream.getvalue()


BAD = {
    "tar up": tarred({"birds/../../evil": b"x"}),
    "tar absolute": tarred({"/tmp/orthoproxy-evil": b"x"}),
    "tar symlink": tarred({}, link("birds/link", "../../secret", tarfile.SYMTYPE)),
    "tar hard link": tarred({}, link("birds/link", "/etc/passwd", tarfile.LNKTYPE)),
    "tar pipe": tarred({}, link("birds/pipe", "", tarfile.FIFOTYPE)),
    "tar bomb": tarred({"birds/bomb": bytes(10**6 + 1)}),
    "tar of many": tarred({f"birds/{n}": b"" for n in range(21)}),
    "zip up": zipped({"../evil": b"x"}),
    "zip up with backslashes": zipped({"more/..\\..\\evil": b"x"}),
    "zip absolute": zipped({"/tmp/orthoproxy-evil": b"x"}),
    "zip drive": zipped({"C:/evil": b"x"}),
    "zip symlink": zipped_link(),
    "zip bomb": zipped({"birds/bomb": bytes(10**6 + 1)}),
    "zip of many": zipped({f"birds/{n}": b"" for n in range(21)}),
    "no archive": b"not packed at all",
    "half a tar": tarred({"birds/images.txt": bytes(range(256)) * 99})[:-40],
    "another archive": zipped({"birds/images.txt": b""}),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_a_bad_archive_leaves_nothing(server: Server, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError):
        fetch(offer(server, content), tmp_path / "some" / "root")
    assert names_below(tmp_path) == {"some", "some/root", "some/root/birds.archive"}
    assert not Path("/tmp/orthoproxy-evil").exists()


def test_other_datasets_have_to_be_got_by_hand() -> None:
    for name in ("cars", "inshop", "icons", "folder"):
        with pytest.raises(InputError) as caught:
            download(name, Path("here"))
        assert caught.value.field == "name" and bool(caught.value.hint) == (name != "folder")

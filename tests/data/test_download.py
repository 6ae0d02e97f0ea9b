"""Downloads from a server in this process: resumed, checked and unpacked, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import io
import re
import socket
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
from orthoproxy.data import download as module
from orthoproxy.data.sources.download import ARCHIVES, Archive, download, fetch

FILES = {
    "birds/images.txt": b"1 a.jpg\n",
    "birds/labels.txt": b"1 1\n",
    "birds/images/a.jpg": bytes(range(256)) * 400,
    "birds/._images.txt": b"left by macOS",
    "more/notes.txt": b"of no use here",
}
UNPACKED = {"images.txt", "labels.txt", "images", "images/a.jpg"}


class Server(ThreadingHTTPServer):
    """A server of one file, which can break off, change the file, and ignore or garble ranges."""

    daemon_threads = False  # so that closing waits for answers under way

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.version = '"1"'  # the ETag
        self.ranges = True
        self.garbled: str | None = None  # a Content-Range to send instead of the right one
        self.cuts: list[int] = []  # bytes after which to break off, of each answer; then none
        self.codes: list[int] = []  # answers before the file
        self.kind = "application/octet-stream"
        self.asked: list[dict[str, str]] = []  # the headers of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/birds.zip?download=1"


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(dict(self.headers))
        if server.codes:
            self.send_error(server.codes.pop(0))
            return
        start = self._start()
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            right = f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            self.send_header("Content-Range", server.garbled or right)
        if server.version:
            self.send_header("ETag", server.version)
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def _start(self) -> int:
        same = self.headers.get("If-Range", self.server.version) == self.server.version
        given = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(given[1]) if given and same and self.server.ranges else 0

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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


def offer(server: Server, content: bytes, name: str = "birds.zip") -> Archive:
    """Let the server have an archive, and describe it."""
    server.content = content
    return Archive(
        name=name,
        url=server.url,
        size=len(content),
        algorithm="sha256",
        checksum=hashlib.sha256(content).hexdigest(),
        folder="birds",
        lists=("images.txt", "labels.txt"),
        most_bytes=10**6,
        most_files=20,
        page="https://example.org/birds",
        terms="for bird watching only",
    )


def under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def check_unpacked(root: Path, archive: Archive) -> None:
    assert under(root) == {"birds", archive.name} | {f"birds/{name}" for name in UNPACKED}
    assert (root / "birds/images/a.jpg").read_bytes() == FILES["birds/images/a.jpg"]
    assert hashlib.sha256((root / archive.name).read_bytes()).hexdigest() == archive.checksum


@pytest.mark.parametrize(("name", "pack"), [("birds.zip", zipped), ("birds.tgz", tarred)])
def test_an_archive_is_fetched_and_unpacked(
    server: Server,
    tmp_path: Path,
    name: str,
    pack: Callable[[dict[str, bytes]], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = offer(server, pack(FILES), name)
    fetch(archive, tmp_path / "a" / "b")
    check_unpacked(tmp_path / "a" / "b", archive)
    said = capsys.readouterr().err
    assert "Terms: for bird watching only" in said and "https://example.org/birds" in said
    assert len(server.asked) == 1 and "Range" not in server.asked[0]


def test_a_second_call_does_nothing(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = offer(server, zipped(FILES))
    fetch(archive, tmp_path)
    (tmp_path / archive.name).unlink()
    for root in (tmp_path, tmp_path / "birds"):  # the readers take either
        fetch(archive, root)
    assert len(server.asked) == 1
    assert "nothing is downloaded" in capsys.readouterr().err


def test_an_archive_put_there_by_hand_is_used(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    (tmp_path / archive.name).write_bytes(server.content)
    fetch(archive, tmp_path)
    check_unpacked(tmp_path, archive)
    assert not server.asked


def test_another_archive_put_there_by_hand_is_refused_and_kept(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    (tmp_path / archive.name).write_bytes(b"half of it")
    with pytest.raises(InputError, match="another sha256 checksum than the published archive; move it away"):
        fetch(archive, tmp_path)
    assert under(tmp_path) == {archive.name}


def test_an_incomplete_folder_is_not_touched(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "images.txt").write_text("mine")
    with pytest.raises(InputError, match="birds is not complete; move it away"):
        fetch(archive, tmp_path)
    assert under(tmp_path) == {"birds", "birds/images.txt"} and not server.asked


def test_a_broken_transfer_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    server.cuts = [300]
    fetch(archive, tmp_path, pauses=[0])
    check_unpacked(tmp_path, archive)
    assert [asked.get("Range") for asked in server.asked] == [None, "bytes=300-"]
    assert server.asked[1]["If-Range"] == '"1"'


def test_attempts_that_get_further_are_not_counted(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    server.cuts = [200] * 5
    fetch(archive, tmp_path, pauses=[0])
    check_unpacked(tmp_path, archive)
    assert [asked.get("Range") for asked in server.asked[1:]] == [f"bytes={200 * n}-" for n in range(1, 6)]


def test_a_later_call_goes_on_where_an_earlier_one_stopped(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    server.cuts = [300]
    with pytest.raises(InputError, match=f"stopped at 300 of {archive.size} bytes; run this again"):
        fetch(archive, tmp_path, pauses=[])
    assert (tmp_path / "birds.zip.part").read_bytes() == server.content[:300]
    fetch(archive, tmp_path, pauses=[])
    check_unpacked(tmp_path, archive)
    assert server.asked[1]["Range"] == "bytes=300-"


def test_a_whole_part_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    (tmp_path / "birds.zip.part").write_bytes(server.content)
    fetch(archive, tmp_path)
    check_unpacked(tmp_path, archive)
    assert not server.asked


@pytest.mark.parametrize("version", ["", 'W/"1"'])
def test_without_a_strong_etag_the_checksum_decides(server: Server, tmp_path: Path, version: str) -> None:
    archive = offer(server, zipped(FILES))
    server.version, server.cuts = version, [300]
    fetch(archive, tmp_path, pauses=[0])
    check_unpacked(tmp_path, archive)
    assert server.asked[1]["Range"] == "bytes=300-" and "If-Range" not in server.asked[1]


def test_a_server_that_ignores_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    server.ranges, server.cuts = False, [300]
    fetch(archive, tmp_path, pauses=[0])
    check_unpacked(tmp_path, archive)


def test_a_file_changed_in_between_is_not_glued_to_the_old_part(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    new = server.content
    server.content, server.version, server.cuts = b"x" * len(new), '"0"', [300]
    with pytest.raises(InputError, match="stopped at 300"):
        fetch(archive, tmp_path, pauses=[])
    server.content, server.version = new, '"1"'
    fetch(archive, tmp_path, pauses=[])
    check_unpacked(tmp_path, archive)
    assert server.asked[1]["If-Range"] == '"0"'


def test_another_range_than_asked_for_starts_again(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    server.garbled, server.cuts = "bytes 0-9/10", [300]
    fetch(archive, tmp_path, pauses=[0, 0])
    check_unpacked(tmp_path, archive)
    assert [asked.get("Range") for asked in server.asked] == [None, "bytes=300-", None]


def test_a_part_that_the_server_has_no_rest_of_starts_again(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    (tmp_path / "birds.zip.part").write_bytes(b"x" * 300)
    server.codes = [416]
    fetch(archive, tmp_path, pauses=[0])
    check_unpacked(tmp_path, archive)


def test_a_server_that_always_stops_early_is_given_up(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    server.ranges, server.cuts = False, [300] * 9
    with pytest.raises(InputError, match="stopped at 300 of"):
        fetch(archive, tmp_path, pauses=[0, 0])
    assert len(server.asked) == 3
    assert under(tmp_path) == {"birds.zip.part", "birds.zip.part.tag"}


def test_a_wrong_checksum_removes_the_part(server: Server, tmp_path: Path) -> None:
    archive = replace(offer(server, zipped(FILES)), checksum="0" * 64)
    with pytest.raises(InputError, match="another sha256 checksum than the published archive, so it was removed"):
        fetch(archive, tmp_path)
    assert under(tmp_path) == set()


def test_an_archive_of_another_size_is_not_fetched(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    server.content += b"more"
    with pytest.raises(InputError, match=f"has {archive.size + 4} bytes, not {archive.size}, so it is another one"):
        fetch(archive, tmp_path)
    assert under(tmp_path) == set()


def test_a_page_instead_of_the_archive_does_not_touch_the_part(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    (tmp_path / "birds.zip.part").write_bytes(server.content[:300])
    server.kind, server.ranges = "text/html; charset=utf-8", False
    with pytest.raises(InputError, match="sends a page, not the file"):
        fetch(archive, tmp_path)
    assert (tmp_path / "birds.zip.part").read_bytes() == server.content[:300]


def test_a_missing_archive_names_the_page(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    server.codes = [404]
    with pytest.raises(
        InputError, match=r"answers 404 Not Found; .* birds\.zip from https://example\.org/birds put in"
    ):
        fetch(archive, tmp_path)
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    server.codes = [503, 429]
    fetch(archive, tmp_path, pauses=[0, 0])
    check_unpacked(tmp_path, archive)


def test_no_server_names_the_page(server: Server, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        archive = replace(offer(server, b"x"), url=f"http://127.0.0.1:{taken.getsockname()[1]}/birds.zip")
        with pytest.raises(InputError, match=r"Connection refused; .* from https://example\.org/birds"):
            fetch(archive, tmp_path, pauses=[0])


def test_too_small_a_disk_is_noticed_before(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = replace(offer(server, zipped(FILES)), size=10**18)
    with pytest.raises(InputError, match=r"MB free; birds\.zip needs some 2000000000000 MB, packed and unpacked"):
        fetch(archive, tmp_path)
    assert not server.asked


def test_a_disk_that_fills_up_is_explained(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = offer(server, zipped(FILES))
    monkeypatch.setattr(module, "unpack", fill_up)
    with pytest.raises(InputError, match=r"no room left; birds\.zip needs some 0 MB"):
        fetch(archive, tmp_path)
    assert under(tmp_path) == {"birds.zip"}


def test_a_root_that_is_a_file_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write in"):
        fetch(offer(server, zipped(FILES)), tmp_path / "file")


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


EVIL = {
    "tar up": ("x.tgz", tarred({"birds/../../evil": b"x"}), "leads outside"),
    "tar absolute": ("x.tgz", tarred({"/tmp/orthoproxy-evil": b"x"}), "leads outside"),
    "tar symlink": ("x.tgz", tarred({}, link("birds/link", "../../secret", tarfile.SYMTYPE)), "neither a file nor"),
    "tar hard link": ("x.tgz", tarred({}, link("birds/link", "/etc/passwd", tarfile.LNKTYPE)), "neither a file nor"),
    "tar pipe": ("x.tgz", tarred({}, link("birds/pipe", "", tarfile.FIFOTYPE)), "neither a file nor"),
    "tar bomb": ("x.tgz", tarred({"birds/bomb": bytes(10**6 + 1)}), "more than 1 MB"),
    "tar of many": ("x.tgz", tarred({f"birds/{n}": b"" for n in range(21)}), "or 20 files"),
    "zip up": ("x.zip", zipped({"../evil": b"x"}), "leads outside"),
    "zip up elsewhere": ("x.zip", zipped({"more/..\\..\\evil": b"x"}), "leads outside"),
    "zip absolute": ("x.zip", zipped({"/tmp/orthoproxy-evil": b"x"}), "leads outside"),
    "zip drive": ("x.zip", zipped({"C:/evil": b"x"}), "leads outside"),
    "zip symlink": ("x.zip", zipped_link(), "neither a file nor"),
    "zip bomb": ("x.zip", zipped({"birds/bomb": bytes(10**6 + 1)}), "more than 1 MB"),
    "zip of many": ("x.zip", zipped({f"birds/{n}": b"" for n in range(21)}), "or 20 files"),
    "no zip": ("x.zip", b"not packed at all", "cannot unpack"),
    "no tar": ("x.tgz", b"not packed at all", "cannot unpack"),
    "half a tar": ("x.tgz", tarred({"birds/images.txt": bytes(range(256)) * 99})[:-40], "cannot unpack"),
    "something else": ("x.zip", zipped({"birds/images.txt": b""}), "has no birds/labels.txt"),
}


@pytest.mark.parametrize(("name", "content", "message"), EVIL.values(), ids=EVIL)
def test_a_bad_archive_leaves_nothing(server: Server, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    root = tmp_path / "some" / "root"
    with pytest.raises(InputError, match=message):
        fetch(offer(server, content, name), root)
    assert under(tmp_path) == {"some", "some/root", f"some/root/{name}"}
    assert not Path("/tmp/orthoproxy-evil").exists()


def test_an_unpacking_that_was_killed_is_done_again(server: Server, tmp_path: Path) -> None:
    archive = offer(server, zipped(FILES))
    (tmp_path / "birds.unpacking" / "birds").mkdir(parents=True)
    (tmp_path / "birds.unpacking" / "birds" / "old.txt").touch()
    (tmp_path / archive.name).write_bytes(server.content)
    fetch(archive, tmp_path)
    check_unpacked(tmp_path, archive)


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("cars", r"https://ai\.stanford\.edu/~jkrause/cars/car_dataset\.html, is gone"),
        ("inshop", r"https://mmlab\.ie\.cuhk\.edu\.hk/projects/DeepFashion/InShopRetrieval\.html; .*here/Eval"),
        ("icons", "nothing to download"),
        ("folder", "no download for 'folder'; there is for cub and sop"),
    ],
)
def test_what_is_not_given_to_everyone_is_explained(name: str, page: str) -> None:
    with pytest.raises(InputError, match=f"data.name: .*{page}"):
        download(name, Path("here"))


def test_published_archives_are_described_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Archive] = []
    monkeypatch.setattr(module, "fetch", lambda archive, root: fetched.append(archive))
    for name in ("cub", "sop"):
        download(name, tmp_path)
    assert fetched == list(ARCHIVES.values())
    for archive in fetched:
        assert archive.url.startswith("https://") and archive.page.startswith("https://")
        assert len(archive.checksum) == 2 * hashlib.new(archive.algorithm).digest_size
        assert archive.size < archive.most_bytes

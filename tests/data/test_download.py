"""Downloads from a local server: the published archive or an error, unpacked whole or not at all."""

import hashlib
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from errors import error_of

from orthoproxy.data.sources.download import ARCHIVES, Archive, fetch

FILES = {"birds/images.txt": b"1 a.jpg\n", "birds/labels.txt": b"1 1\n", "birds/images/a.jpg": b"\xff\xd8 a bird"}
KINDS = ("zip", "tgz")
Offer = Callable[..., Archive]


@pytest.fixture
def offer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offer]:
    """Packs files into an archive of a kind, which a local server gives away."""
    folder = tmp_path_factory.mktemp("served")

    def pack(kind: str = "zip", files: dict[str, bytes] = FILES) -> Archive:
        path = folder / f"birds.{kind}"
        with zipfile.ZipFile(path, "w") if kind == "zip" else tarfile.open(path, "w:gz") as archive:
            for name, content in files.items():
                (folder / "member").write_bytes(content)
                (archive.write if isinstance(archive, zipfile.ZipFile) else archive.add)(folder / "member", name)
        return replace(
            ARCHIVES["cub"],
            name=path.name,
            url=f"http://127.0.0.1:{server.server_address[1]}/{path.name}",
            known_hash=f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
            folder="birds",
            lists=("images.txt", "labels.txt"),
        )

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield pack
        server.shutdown()


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_downloaded_once_and_unpacked(kind: str, offer: Offer, tmp_path: Path) -> None:
    archive, root = offer(kind), tmp_path / "a" / "b"
    (root / "birds.unpacking" / "birds").mkdir(parents=True)  # of a killed call
    (root / "birds.unpacking" / "birds" / "old.txt").touch()
    fetch(archive, root)
    assert names_below(root) == {archive.name, "birds", "birds/images", *FILES}
    assert (root / "birds/images/a.jpg").read_bytes() == FILES["birds/images/a.jpg"]
    archive = replace(archive, url="http://127.0.0.1:1/birds")  # where there is no server
    (root / archive.name).rename(tmp_path / archive.name)
    for place in (root, root / "birds"):  # the readers accept either
        fetch(archive, place)
    fetch(archive, tmp_path)  # from the archive that is there
    assert names_below(tmp_path / "birds") == names_below(root / "birds")


def test_what_a_user_has_there_is_not_touched(offer: Offer, tmp_path: Path) -> None:
    archive = offer()
    (tmp_path / archive.name).write_bytes(b"half of it")
    error = error_of(fetch, archive, tmp_path)
    assert error.path == tmp_path / archive.name and names_below(tmp_path) == {archive.name}
    (tmp_path / archive.name).unlink()
    (tmp_path / "birds").mkdir()
    assert error_of(fetch, archive, tmp_path).path == tmp_path / "birds" and names_below(tmp_path) == {"birds"}
    (tmp_path / "file").touch()
    assert str(error_of(fetch, archive, tmp_path / "file").path) == str(tmp_path / "file")


def test_another_file_and_no_server_are_errors(offer: Offer, tmp_path: Path) -> None:
    archive = offer()
    for change in ({"known_hash": "sha256:" + "0" * 64}, {"url": "http://127.0.0.1:1/birds"}):
        error = error_of(fetch, replace(archive, **change), tmp_path)
        assert error.field == "name" and archive.page in str(error.hint)
        assert names_below(tmp_path) == set()


@pytest.mark.parametrize("member", ["birds/../../../evil", "../evil"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_unpacked_elsewhere(kind: str, member: str, offer: Offer, tmp_path: Path) -> None:
    with suppress(tarfile.TarError):
        fetch(offer(kind, {**FILES, member: b"x"}), tmp_path / "some" / "root")
    assert not [path for path in names_below(tmp_path) if path.endswith("evil")]

"""Get the benchmarks that their owners still give to everyone; for the others, say where they are to be had."""

from __future__ import annotations

import errno
import hashlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orthoproxy.core.errors import InputError
from orthoproxy.data.sources.transfer import PAUSES, size_of, transfer
from orthoproxy.data.sources.unpack import MB, unpack


@dataclass(frozen=True)
class Archive:
    """A file that an owner publishes, and what is in it."""

    name: str
    """The file's own name."""
    url: str
    size: int
    """Bytes."""
    algorithm: str
    """Of the checksum, as hashlib calls it."""
    checksum: str
    """Hexadecimal."""
    folder: str
    """The folder at its top that holds the data."""
    lists: tuple[str, ...]
    """Files in that folder without which the data are not complete."""
    most_bytes: int
    """What it may come to unpacked."""
    most_files: int
    page: str
    """Where the owner offers it."""
    terms: str
    """A sentence, shown before the download."""


ARCHIVES = {
    # Address, size and MD5 as public projects give them that took the file from the owner's record; several that use
    # CaltechDATA say that the MD5 is the record's own. Some 12,000 members.
    "cub": Archive(
        name="CUB_200_2011.tgz",
        url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
        size=1_150_585_339,
        algorithm="md5",
        checksum="97eceeb196236b17998738112f37df78",
        folder="CUB_200_2011",
        lists=("images.txt", "image_class_labels.txt"),
        most_bytes=6_000 * MB,
        most_files=50_000,
        page="https://data.caltech.edu/records/65de6-vp158",
        # as two public projects quote the owner
        terms="said to be non-commercial research and education only, read the page; photographers keep their rights",
    ),
    # The owners' page links ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip, which nothing protects on its
    # way and which was reported dead; the first author's repository has this address too, as two projects say that use
    # it. The owners publish no checksum: TensorFlow Datasets recorded size and SHA-256 of the file on their FTP server.
    "sop": Archive(
        name="Stanford_Online_Products.zip",
        url="https://drive.usercontent.google.com/download?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&export=download&confirm=t",
        size=3_083_860_082,
        algorithm="sha256",
        checksum="b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48",
        folder="Stanford_Online_Products",
        lists=("Ebay_train.txt", "Ebay_test.txt"),
        most_bytes=10_000 * MB,
        most_files=400_000,
        page="https://github.com/rksltnl/Deep-Metric-Learning-CVPR16",
        terms="no licence is known; the pictures remain their sellers', so use them for research",
    ),
}
BY_HAND = {
    "cars": "the owner's page, https://ai.stanford.edu/~jkrause/cars/car_dataset.html, is gone, and nobody else's copy "
    "is fetched. https://pytorch.org/vision/stable/generated/torchvision.datasets.StanfordCars.html says where to find "
    "one; unpack it so that {root} has cars_train, cars_test and devkit, with cars_test_annos_withlabels.mat",
    "inshop": "the owner asks you to agree to terms first. Get img.zip and list_eval_partition.txt by way of "
    "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html; put the list in {root}/Eval and unpack "
    "the archive in {root}/Img",
    "icons": "nothing to download; install orthoproxy[icons], and the first use renders them",
}


def download(name: str, root: Path) -> None:
    """Get a benchmark from its owner and unpack it, or say how to get it by hand.

    Parameters
    ----------
    name
        As in ``data.name``. ``cub`` and ``sop`` are downloaded.
    root
        The folder to put the data in, made if missing; later the ``data.root`` of a recipe.

    Raises
    ------
    InputError
        If the owner does not give the data to everyone, saying where they are to be had and how to lay them out; or as
        `fetch`.

    Examples
    --------
    >>> download("icons", Path("data/icons"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: data.name: icons: nothing to download; install orthoproxy[icons], and the first use \
renders them
    """
    if name in ARCHIVES:
        fetch(ARCHIVES[name], root)
    elif name in BY_HAND:
        raise InputError(f"data.name: {name}: {BY_HAND[name].format(root=root)}")
    else:
        raise InputError(f"data.name: there is no download for {name!r}; there is for {' and '.join(ARCHIVES)}")


def fetch(archive: Archive, root: Path, pauses: Sequence[float] = PAUSES) -> None:
    """Download an archive, check it and unpack it; what an earlier call got is not fetched again.

    The archive grows as ``NAME.part``, gets its own name when the checksum holds, and is kept. The data are unpacked
    beside their place and moved there whole, so that no reader sees half of them. An archive that is in `root` already
    is used.

    Parameters
    ----------
    archive
        What to get.
    root
        The folder to put it in, made if missing.
    pauses
        Seconds before each further attempt without progress.

    Raises
    ------
    InputError
        If the server cannot be reached or does not have the archive, if it is not what was expected, or if `root`
        cannot hold it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     folder = Path(root, "CUB_200_2011")
    ...     folder.mkdir()
    ...     for name in ARCHIVES["cub"].lists:
    ...         folder.joinpath(name).touch()
    ...     fetch(ARCHIVES["cub"], Path(root))  # it is there
    """
    place, packed = root / archive.folder, root / archive.name
    if any(all((folder / name).is_file() for name in archive.lists) for folder in (place, root)):
        _say(f"{archive.folder} is in {root}, nothing is downloaded")
        return
    if place.exists():
        raise InputError(f"data.root: {place} is not complete; move it away and run this again")
    with _storing(archive, root):
        root.mkdir(parents=True, exist_ok=True)
        if not packed.exists():
            _say(f"{archive.name}, {archive.size // MB} MB, from {archive.page}\nTerms: {archive.terms}")
            _receive(archive, root, pauses)
        elif _checksum(archive, packed) != archive.checksum:
            raise InputError(
                f"data.root: {packed} has another {archive.algorithm} checksum than the published archive; move it "
                "away and run this again, or unpack it yourself if you trust it"
            )
        _unpack_whole(archive, packed, place)
    _say(f"{place} is ready; {packed} can go")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _storing(archive: Archive, root: Path) -> Iterator[None]:
    """Explain what goes wrong with the disk; what goes wrong with the network never comes as an OSError here."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _too_small(archive, root, "no room left") from error
        raise InputError(f"data.root: cannot write in {root}: {error}") from error


def _too_small(archive: Archive, root: Path, found: str) -> InputError:
    needed = 2 * archive.size // MB  # pictures hardly shrink when packed
    return InputError(f"data.root: {root}: {found}; {archive.name} needs some {needed} MB, packed and unpacked")


def _checksum(archive: Archive, path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(archive.algorithm, usedforsecurity=False)).hexdigest()


def _receive(archive: Archive, root: Path, pauses: Sequence[float]) -> None:
    """Get the whole archive, check it, and give it its name."""
    part = root / f"{archive.name}.part"
    free, needed = shutil.disk_usage(root).free, 2 * archive.size - size_of(part)
    if free < needed:
        raise _too_small(archive, root, f"{free // MB} MB free")
    remedy = f"run this again, if need be with {archive.name} from {archive.page} put in {root}"
    transfer(archive.url, archive.size, part, remedy, pauses)
    if _checksum(archive, part) != archive.checksum:
        part.unlink()
        raise InputError(
            f"data.name: what came from {archive.url} has another {archive.algorithm} checksum than the published "
            f"archive, so it was removed; {remedy}"
        )
    part.replace(root / archive.name)


def _unpack_whole(archive: Archive, packed: Path, place: Path) -> None:
    beside = place.with_name(f"{place.name}.unpacking")
    shutil.rmtree(beside, ignore_errors=True)  # left by a call that was killed
    beside.mkdir()
    try:
        unpack(packed, archive.folder, beside, archive.most_bytes, archive.most_files)
        for name in archive.lists:
            if not (beside / archive.folder / name).is_file():
                raise InputError(f"data.root: {packed} has no {archive.folder}/{name}; get it again")
        (beside / archive.folder).replace(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)

"""Download benchmarks that their owners give to everyone; for the others, say where to get them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from orthoproxy.core.errors import InputError, os_errors_as_input_errors


@dataclass(frozen=True)
class Archive:
    """A published archive of a dataset."""

    name: str
    url: str
    known_hash: str
    folder: str  # its top-level folder
    lists: tuple[str, ...]  # files in that folder without which the dataset is incomplete
    page: str
    terms: str


ARCHIVES = {
    # MD5 as public projects that use CaltechDATA quote it from the record
    "cub": Archive(
        name="CUB_200_2011.tgz",
        url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
        known_hash="md5:97eceeb196236b17998738112f37df78",
        folder="CUB_200_2011",
        lists=("images.txt", "image_class_labels.txt"),
        page="https://data.caltech.edu/records/65de6-vp158",
        terms="non-commercial research and education only; photographers keep their rights",
    ),
    # The address is in the first author's repository; the checksum was recorded by TensorFlow Datasets
    "sop": Archive(
        name="Stanford_Online_Products.zip",
        url="https://drive.usercontent.google.com/download?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&export=download&confirm=t",
        known_hash="sha256:b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48",
        folder="Stanford_Online_Products",
        lists=("Ebay_train.txt", "Ebay_test.txt"),
        page="https://github.com/rksltnl/Deep-Metric-Learning-CVPR16",
        terms="no license is known; the photos belong to their sellers, so use them for research",
    ),
}
BY_HAND = {
    "cars": "https://pytorch.org/vision/stable/generated/torchvision.datasets.StanfordCars.html says where to find "
    "a copy, as the owner's page is gone; unpack cars_train, cars_test and devkit, with cars_test_annos_withlabels.mat",
    "inshop": "agree to the terms at https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html; put "
    "list_eval_partition.txt in the folder Eval, and unpack img.zip in the folder Img",
    "icons": "install orthoproxy[icons]; the first use renders them",
}


def download(name: str, root: Path) -> None:
    """Download, check and unpack a benchmark, unless `root` has it; for others, InputError says how to get them."""
    if name not in ARCHIVES:
        hint = BY_HAND.get(name)
        raise InputError(f"no download of {name!r}", field="name", expected=" or ".join(ARCHIVES), hint=hint)
    fetch(ARCHIVES[name], root)


def fetch(archive: Archive, root: Path) -> None:
    """Download and unpack an archive. A killed call leaves nothing that looks complete."""
    import pooch

    folder, packed = root / archive.folder, root / archive.name
    if any(all((place / name).is_file() for name in archive.lists) for place in (folder, root)):
        pooch.get_logger().info("%s is in %s", archive.folder, root)
        return
    if folder.exists():
        raise InputError("incomplete", field="root", path=folder, hint="move it away")
    by_hand = f"download {archive.name} from {archive.page} to {root}"
    with os_errors_as_input_errors(root, "run it again"):
        root.mkdir(parents=True, exist_ok=True)
        if not packed.exists():
            pooch.get_logger().info("%s, from %s. Terms: %s", archive.name, archive.page, archive.terms)
        elif not pooch.hashes.hash_matches(packed, archive.known_hash):
            raise InputError("not the published archive", field="root", path=packed, hint="move it away")
        try:
            pooch.retrieve(archive.url, archive.known_hash, archive.name, root, progressbar=False)
        except (OSError, ValueError) as error:  # no connection, an HTTP error; another hash
            if isinstance(error, OSError) and error.errno:  # of the disk
                raise
            raise InputError(f"cannot download {archive.url}: {error}", field="name", hint=by_hand) from error
        unfinished = folder.with_name(f"{folder.name}.unpacking")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            if packed.suffix == ".zip":  # of which nothing is unpacked elsewhere, and no link is made
                shutil.unpack_archive(packed, unfinished)
            else:
                shutil.unpack_archive(packed, unfinished, filter="data")
            (unfinished / archive.folder).replace(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

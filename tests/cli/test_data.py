"""orthoproxy data on synthetic copies of every dataset layout."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import json_of
from errors import input_error
from PIL import Image
from stand_ins import write_cars_in_one_folder, write_cars_in_two_folders, write_cub, write_inshop, write_sop

from orthoproxy.data.audit import verify

# small copies with an image file for every listed image, and the folder of these
SMALL: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "cub": ("cub", "images", lambda root: write_cub(root, (200, 200), range(1, 201))),
    "cars in one folder": ("cars", "car_ims", lambda root: write_cars_in_one_folder(root, (98, 98), range(1, 197))),
    "cars in two": ("cars", "cars_test", lambda root: write_cars_in_two_folders(root, (98, 98), range(1, 197))),
    "sop": ("sop", "chair_final", lambda root: write_sop(root, (24, 24), (12, 12), range(1, 25))),
    "inshop": ("inshop", "Img/img", lambda root: write_inshop(root, (24, 8, 8), (12, 4), range(1, 17))),
}


def run(action: str, images: object, *more: object, code: int = 0) -> dict[str, Any]:
    return json_of(["data", action, images, "--workers", 0, *more], code)


def checks_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in result["checks"]}


@pytest.fixture
def write_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a small copy, of noise; its counts are taken for the published ones. Sizes (height first) come by turns."""

    def write_copy(layout: str, *sizes: tuple[int, int]) -> Path:
        name, _, write = SMALL[layout]
        write(root := tmp_path / "data")
        for number, path in enumerate(sorted(root.rglob("*.[jJ]*"))):
            if not path.name.startswith("."):
                size = sizes[number % len(sizes)] if sizes else (32 + number % 2, 40)
                pixels = np.random.default_rng(number).integers(0, 256, size=(*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path, format="JPEG")
        described = run("describe", name, "--data.root", root, "--lists-only")
        counts = {part: (described[part]["images"], described[part]["classes"]) for part in verify.PUBLISHED[name]}
        monkeypatch.setitem(verify.PUBLISHED, name, counts)
        return root

    return write_copy


@pytest.fixture
def cub(write_copy: Callable[..., Path]) -> Path:
    return write_copy("cub")


def birds(root: Path, number: int) -> list[Path]:
    return sorted((root / "images" / f"{number:03d}.Bird_{number}").glob("Bird*.jpg"))


@pytest.mark.parametrize("layout", SMALL)
def test_complete_copies_pass_and_missing_and_unlisted_files_are_found(layout: str, write_copy) -> None:
    name, folder, _ = SMALL[layout]
    root = write_copy(layout, *[(256, 256)] * (name == "inshop"))
    verified = run("verify", name, "--data.root", root)
    assert verified["passed"] and verified["opened"]
    sized = {"image sizes", "bounding boxes"} & checks_of(verified).keys()
    assert len(sized) == {"cub": 2, "cars": 2, "sop": 1, "inshop": 1}[name]
    assert {check["status"] for check in verified["checks"]} == {"ok"} and len(verified["checks"]) >= 11
    described = run("describe", name, "--data.root", root)
    assert described["unreadable"] == {"count": 0, "images": []}
    assert described["sizes"]["width"]["max"] == (256 if name == "inshop" else 40)
    assert described["sizes"]["megapixels"]["max"] == (0.0655 if name == "inshop" else 0.00132)
    missing, kept = sorted(path for path in (root / folder).rglob("*.[jJ]*") if not path.name.startswith("."))[:2]
    missing.unlink()
    for extra in (kept.with_name("extra.png"), kept.with_name("._extra.png")):
        shutil.copy(kept, extra)
    (root / "segmentations").mkdir()
    shutil.copy(kept, root / "segmentations" / "1.png")  # another part of the dataset
    verified = run("verify", name, "--data.root", root, "--lists-only", code=2)
    checks = checks_of(verified)
    assert not verified["passed"] and checks["missing files"]["items"] == [str(missing)]
    assert checks["unlisted images"]["items"] == [str(kept.with_name("extra.png"))]
    assert checks["unlisted images"]["status"] == "note"


@pytest.mark.parametrize(("layout", "sizes", "check"), [
    ("inshop", [(1101, 750)], "image sizes"), ("inshop", [(256, 256), (256, 170)], "image sizes"),
    ("sop", [(256, 256)], "image sizes"), ("sop", [(256, 300), (400, 256)], "image sizes"),
    ("cub", [(224, 224)], "image sizes"), ("cub", [(16, 20), (15, 21)], "bounding boxes"),
    ("cars in one folder", [(20, 30), (21, 28)], "bounding boxes"),
    ("cars in two", [(20, 40), (19, 40)], "bounding boxes"),
])  # fmt: skip
def test_copies_of_other_sizes_fail(layout, sizes, check, write_copy) -> None:
    name, root = SMALL[layout][0], write_copy(layout, *sizes)
    images = sum(count for part, (count, _) in verify.PUBLISHED[name].items() if part != "test" or name != "inshop")
    checks = checks_of(run("verify", name, "--data.root", root, code=2))
    assert {name for name, found in checks.items() if found["status"] == "failed"} == {check}
    assert checks[check]["count"] == images // (2 if (256, 256) in sizes[:-1] else 1)


def test_damaged_boxes_are_noted(cub: Path) -> None:
    path = cub / "bounding_boxes.txt"
    lines = path.read_text().splitlines()
    for rows in ([f"{lines[0].split()[0]} 0.0 0.0 nan 9.0", *lines[1:]], lines[1:]):
        path.write_text("\n".join(rows))
        check = checks_of(run("verify", "cub", "--data.root", cub))["bounding boxes"]
        assert check["status"] == "note" and "not checked" in check["summary"]


@pytest.mark.parametrize(("layout", "published"), [
    ("cub", {"train": (5864, 100), "test": (5924, 100)}), ("cars in two", {"train": (8054, 98), "test": (8131, 98)}),
    ("sop", {"train": (59551, 11318), "test": (60502, 11316)}),
    ("inshop", {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985), "test": (26830, 3985)}),
])  # fmt: skip
def test_other_counts_than_the_published_fail(layout: str, published: dict, tmp_path: Path, capsys) -> None:
    name, _, write = SMALL[layout]
    write(root := tmp_path / "data")
    verified = run("verify", name, "--data.root", root, "--lists-only", code=2)
    assert not verified["opened"] and "FAILED" in capsys.readouterr().out
    for part, (images, classes) in published.items():
        check = checks_of(verified)[f"counts, {part}"]
        assert check["status"] == "failed" and check["items"][0]["found"]["images"] < images
        assert check["items"][0]["published"] == {"images": images, "classes": classes}


def test_damaged_images_fail(cub: Path) -> None:
    damaged = [birds(cub, number)[0] for number in range(1, 15)]
    for path in damaged:
        path.write_bytes(b"")
    damaged[0].write_bytes((content := birds(cub, 100)[0].read_bytes())[: len(content) * 2 // 3])
    checks = checks_of(run("verify", "cub", "--data.root", cub, "--workers", 2, code=2))
    assert not any(check["items"] for name, check in checks.items() if "duplicates" in name)
    check = checks["unreadable images"]
    assert check["status"] == "failed" and all(item["reason"] for item in check["items"])
    assert sorted(item["path"] for item in check["items"]) == sorted(map(str, damaged))
    assert run("describe", "cub", "--data.root", cub)["unreadable"] == {"count": 14, "images": check["items"]}


def test_exact_and_near_duplicates_by_distance(cub: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, size=(3, 6, 8, 3), dtype=np.uint8)
    one, two, three = (Image.fromarray(block).resize((160, 120), 3) for block in blocks)
    one.save(birds(cub, 1)[0])
    shutil.copy(birds(cub, 1)[0], birds(cub, 101)[0])  # the same file in train and test
    two.save(birds(cub, 2)[0], quality=95)
    two.resize((80, 60)).save(birds(cub, 102)[0], quality=60)
    three.save(birds(cub, 3)[0])
    shutil.copy(birds(cub, 3)[0], birds(cub, 3)[1])
    three.resize((200, 150)).save(birds(cub, 4)[0], quality=80)
    verified = run("verify", "cub", "--data.root", cub)
    assert verified["passed"]  # the published datasets have duplicates too
    found = {
        name: [{Path(image["path"]) for image in group} for group in check["items"]]
        for name, check in checks_of(verified).items()
        if "duplicates" in name
    }
    assert found == {
        "exact duplicates within a class": [{*birds(cub, 3)[:2]}],
        "exact duplicates across classes": [],
        "exact duplicates across splits": [{birds(cub, 1)[0], birds(cub, 101)[0]}],
        "near duplicates within a class": [],
        "near duplicates across classes": [{*birds(cub, 3)[:2], birds(cub, 4)[0]}],
        "near duplicates across splits": [{birds(cub, 2)[0], birds(cub, 102)[0]}],
    }


def test_own_folder_and_csv_file(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(image_folder, root)
    shutil.copy(root / "red" / "0.png", root / "loose.png")
    shutil.copy(root / "red" / "1.png", root / "green" / "copy.png")
    described = run("describe", root)
    assert described["all"] == {"images": 13, "classes": 3}
    per_class = {"smallest": 4, "median": 4.0, "mean": 4.33, "largest": 5, "single": 0}
    assert described["images_per_class"]["all"] == per_class
    Image.fromarray(np.linspace(0, 4095, 1600).astype(np.uint16).reshape(40, 40)).save(root / "red" / "12 bits.png")
    checks = checks_of(run("verify", root))
    assert checks["almost black images"]["items"] == [str(root / "red" / "12 bits.png")]
    assert checks["unlisted images"]["items"] == [str(root / "loose.png")]
    assert checks["exact duplicates across classes"]["count"] == 1
    assert run("describe", root, "--ignore", "green", "--ignore", "*/0.png")["all"] == {"images": 7, "classes": 2}
    assert checks_of(run("verify", root, "--ignore", "green", "--ignore", "loose*"))["unlisted images"]["count"] == 0
    rows = ["path,label,split", "images/red/0.png,red,train", "images/red/1.png,red,train", "images/blue/1.png,blue,"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    described = run("describe", tmp_path / "list.csv")
    assert described["train"] == {"images": 2, "classes": 1} and described["unassigned"]["images"] == 1


@pytest.mark.parametrize(("arguments", "field"), [
    (["verify", "cub"], "data.root"), (["describe", "cub", "--data.root", "nowhere"], "data.root"),
    (["describe", "nowhere"], "data.root"), (["describe", "nowhere.csv"], "data.csv"),
    (["download", "cub"], "data.root"), (["download", "photos", "--data.root", "x"], "images"),
])  # fmt: skip
def test_errors_name_the_field(arguments: list[str], field: str) -> None:
    assert input_error(["data", *arguments]).field == field

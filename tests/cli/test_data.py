"""`orthoproxy data`: what it prints, writes and returns, on stand-ins of every layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stand_ins import (
    write_cars_by_class,
    write_cars_in_one_folder,
    write_cars_in_two_folders,
    write_cub,
    write_inshop,
    write_sop,
)

from orthoproxy.cli import data as data_verbs
from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.data import verify

COUNTS = {
    "cub": {"train": (5864, 100), "test": (5924, 100)},
    "cars": {"train": (8054, 98), "test": (8131, 98)},
    "sop": {"train": (59551, 11318), "test": (60502, 11316)},
    "inshop": {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985), "test": (26830, 3985)},
}
WRITERS: dict[str, Callable[[Path], None]] = {
    "cub": write_cub,
    "cars": write_cars_in_one_folder,
    "sop": write_sop,
    "inshop": write_inshop,
}
# layouts with pictures for every class, and where the images of each lie
SMALL: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "cub": ("cub", "images", lambda root: write_cub(root, (200, 200), range(1, 201))),
    "cars in one folder": ("cars", "car_ims", lambda root: write_cars_in_one_folder(root, (98, 98), range(1, 197))),
    "cars in two": ("cars", "cars_test", lambda root: write_cars_in_two_folders(root, (98, 98), range(1, 197))),
    "sop": ("sop", "chair_final", lambda root: write_sop(root, (24, 24), (12, 12), range(1, 25))),
    "inshop": ("inshop", "Img/img", lambda root: write_inshop(root, (24, 8, 8), (12, 4), range(1, 17))),
}


def draw_all(root: Path) -> None:
    """Draw a picture of its own in place of each: those of the stand-ins may differ in colour alone."""
    for number, path in enumerate(sorted(root.rglob("*.[jJ]*"))):
        if not path.name.startswith("."):
            pixels = np.random.default_rng(number).integers(0, 256, size=(32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path, format="JPEG")


def run_verb(action: str, name: str, out: Path, *more: object) -> tuple[int, dict[str, Any]]:
    """Run the verb in this process; return its exit code and what it wrote."""
    code = main(["data", action, "--data.name", name, "--data.workers", "0", "--json", str(out), *map(str, more)])
    return code, json.loads(out.read_text(encoding="utf-8"))


def checks_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in result["checks"]}


def as_published(monkeypatch: pytest.MonkeyPatch, name: str, root: Path, out: Path) -> None:
    """Take the counts of a stand-in for the published ones."""
    described = run_verb("describe", name, out, "--data.root", root, "--no-open")[1]
    counts = {part: (described[part]["images"], described[part]["classes"]) for part in COUNTS[name]}
    monkeypatch.setitem(verify.PUBLISHED, name, counts)


@pytest.mark.parametrize("name", WRITERS)
def test_counts_of_full_size_from_the_lists_alone(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "data")
    code, described = run_verb("describe", name, tmp_path / "out.json", "--data.root", tmp_path / "data", "--no-open")
    assert code == 0
    expected = {part: {"images": images, "classes": classes} for part, (images, classes) in COUNTS[name].items()}
    assert {part: described[part] for part in described if part != "images_per_class"} == expected
    code, verified = run_verb("verify", name, tmp_path / "out.json", "--data.root", tmp_path / "data", "--no-open")
    statuses = {check["name"]: check["status"] for check in verified["checks"]}
    # the stand-in has no images, and the published counts are as the facts have them
    expected_statuses = {f"counts, {part}": "ok" for part in COUNTS[name]}
    assert statuses == {**expected_statuses, "missing files": "failed", "unlisted images": "ok"}
    assert code == 2 and not verified["passed"] and not verified["opened"]


def test_a_whole_copy_of_full_size_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cars_by_class(tmp_path / "cars")
    code, verified = run_verb("verify", "cars", tmp_path / "out.json", "--data.root", tmp_path / "cars", "--no-open")
    assert code == 0 and verified["passed"]
    assert {check["status"] for check in verified["checks"]} == {"ok"}
    printed = capsys.readouterr()
    assert "8,054 images of 98 classes, as published" in printed.out and printed.err == ""


@pytest.mark.parametrize("layout", SMALL)
def test_a_whole_copy_passes_when_its_images_are_opened(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, write = SMALL[layout]
    write(root := tmp_path / "data")
    draw_all(root)
    as_published(monkeypatch, name, root, tmp_path / "out.json")
    code, verified = run_verb("verify", name, tmp_path / "out.json", "--data.root", root)
    assert code == 0 and verified["passed"] and verified["opened"]
    kinds = [f"{kind} duplicates" for kind in ("exact", "near")]
    places = ("within a class", "across classes", "across splits")
    names = [*(f"counts, {part}" for part in COUNTS[name]), "missing files", "unlisted images", "unreadable images"]
    assert list(checks_of(verified)) == [*names, *(f"{kind} {place}" for kind in kinds for place in places)]
    assert {check["status"] for check in verified["checks"]} == {"ok"}
    assert all(set(check) == {"name", "status", "summary", "items", "count"} for check in verified["checks"])
    code, described = run_verb("describe", name, tmp_path / "out.json", "--data.root", root)
    assert code == 0 and described["unreadable"] == {"count": 0, "images": []}
    assert described["sizes"]["width"] == {"min": 40, "median": 40.0, "max": 40}


def test_counts_that_differ_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sop(root := tmp_path / "data", (24, 24), (12, 12), range(1, 25))
    code, verified = run_verb("verify", "sop", tmp_path / "out.json", "--data.root", root)
    assert code == 2
    check = checks_of(verified)["counts, test"]
    assert check["status"] == "failed"
    assert check["items"] == [
        {"found": {"images": 24, "classes": 12}, "published": {"images": 60502, "classes": 11316}}
    ]
    printed = capsys.readouterr()
    assert "FAILED" in printed.out
    assert printed.err.count("\n") == 2 and "is not whole: counts, train; counts, test\n" in printed.err


@pytest.mark.parametrize("layout", SMALL)
def test_missing_and_unlisted_files(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, folder, write = SMALL[layout]
    write(root := tmp_path / "data")
    as_published(monkeypatch, name, root, tmp_path / "out.json")
    missing, kept = sorted(path for path in (root / folder).rglob("*.[jJ]*") if not path.name.startswith("."))[:2]
    missing.unlink()
    for extra in (kept.with_name("extra.png"), kept.with_name("._extra.png")):
        shutil.copy(kept, extra)
    for elsewhere in ("segmentations/1.png", "img_highres/1.jpg", "Img/img_highres/1.jpg"):  # other parts of a data set
        (root / elsewhere).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kept, root / elsewhere)
    for more in ([], ["--no-open"]):
        code, verified = run_verb("verify", name, tmp_path / "out.json", "--data.root", root, *more)
        checks = checks_of(verified)
        assert code == 2 and not verified["passed"]
        assert checks["missing files"]["items"] == [str(missing)]
        assert checks["unlisted images"] == {
            "name": "unlisted images",
            "status": "note",
            "summary": "1 beside the listed ones; they are not used",
            "count": 1,
            "items": [str(kept.with_name("extra.png"))],
        }
    assert "unreadable images" not in checks


@pytest.fixture
def cub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole small copy of CUB whose pictures differ."""
    write_cub(root := tmp_path / "cub", (200, 200), range(1, 201))
    draw_all(root)
    as_published(monkeypatch, "cub", root, tmp_path / "out.json")
    return root


def images_of(root: Path, number: int) -> list[Path]:
    return sorted((root / "images" / f"{number:03d}.Bird_{number}").glob("Bird*.jpg"))


def test_damaged_images_fail_and_are_listed(cub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncated, empty = images_of(cub, 1)[0], images_of(cub, 150)[1]
    whole = truncated.read_bytes()
    truncated.write_bytes(whole[: len(whole) * 2 // 3])
    empty.write_bytes(b"")
    code, verified = run_verb("verify", "cub", tmp_path / "out.json", "--data.root", cub)
    check = checks_of(verified)["unreadable images"]
    assert code == 2 and check["status"] == "failed"
    assert {item["path"] for item in check["items"]} == {str(truncated), str(empty)}
    assert all(item["reason"] for item in check["items"])
    code, described = run_verb("describe", "cub", tmp_path / "out.json", "--data.root", cub)
    assert code == 0 and described["unreadable"] == {"count": 2, "images": check["items"]}
    assert f"  images/{truncated.parent.name}/{truncated.name}: " in capsys.readouterr().out


def test_duplicates_are_told_apart_by_how_far_they_are(
    cub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    one, two, three = (
        Image.fromarray(generator.integers(0, 256, size=(6, 8, 3), dtype=np.uint8)).resize((160, 120), 3)
        for _ in range(3)
    )
    one.save(images_of(cub, 1)[0])
    shutil.copy(images_of(cub, 1)[0], images_of(cub, 101)[0])  # the same file in train and test
    two.save(images_of(cub, 2)[0], quality=95)
    two.resize((80, 60)).save(images_of(cub, 102)[0], quality=60)  # smaller and encoded again
    three.save(images_of(cub, 3)[0])
    shutil.copy(images_of(cub, 3)[0], images_of(cub, 3)[1])
    three.resize((200, 150)).save(images_of(cub, 4)[0], quality=80)
    code, verified = run_verb("verify", "cub", tmp_path / "out.json", "--data.root", cub)
    assert code == 0 and verified["passed"]  # published data have duplicates too
    checks = checks_of(verified)

    def found(name: str) -> list[set[Path]]:
        return [{Path(image["path"]) for image in group} for group in checks[name]["items"]]

    assert found("exact duplicates across splits") == [{images_of(cub, 1)[0], images_of(cub, 101)[0]}]
    assert found("near duplicates across splits") == [{images_of(cub, 2)[0], images_of(cub, 102)[0]}]
    assert found("exact duplicates within a class") == [set(images_of(cub, 3)[:2])]
    assert found("near duplicates across classes") == [{*images_of(cub, 3)[:2], images_of(cub, 4)[0]}]
    assert not found("exact duplicates across classes") and not found("near duplicates within a class")
    splits = {image["split"] for image in checks["near duplicates across splits"]["items"][0]}
    assert splits == {"train", "test"}
    printed = capsys.readouterr().out
    assert "scores are too good" in printed
    name = images_of(cub, 1)[0].name
    assert f"  images/001.Bird_1/{name} (train 001.Bird_1)\n" in printed or f"  = images/001.Bird_1/{name}" in printed
    assert "exact duplicates within a class:" not in printed


@pytest.mark.parametrize("columns", [80, 200])
def test_only_the_first_examples_are_printed(
    cub: Path, tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for number in range(1, 15):
        images_of(cub, number)[0].write_bytes(b"")
    code, verified = run_verb("verify", "cub", tmp_path / "out.json", "--data.root", cub)
    assert code == 2 and checks_of(verified)["unreadable images"]["count"] == 14
    printed = capsys.readouterr().out
    assert printed.count(": the file is empty") == 10 and "... and 4 more; --json FILE lists all" in printed
    table = printed.partition("unreadable images:")[0].splitlines()
    assert max(map(len, table)) <= columns


def test_a_folder_of_ones_own(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "images"
    shutil.copytree(image_folder, root)
    shutil.copy(root / "red" / "0.png", root / "of no class.png")
    shutil.copy(root / "red" / "1.png", root / "green" / "copy.png")
    code, described = run_verb("describe", "folder", tmp_path / "out.json", "--data.root", root)
    assert code == 0 and described["all"] == {"images": 13, "classes": 3}
    code, verified = run_verb("verify", "folder", tmp_path / "out.json", "--data.root", root)
    checks = checks_of(verified)
    assert code == 0 and verified["passed"]
    assert checks["counts"]["summary"] == "none are published for folder; found 13 images of 3 classes"
    assert checks["unlisted images"]["items"] == [str(root / "of no class.png")]
    assert checks["exact duplicates across classes"]["count"] == 1
    assert "none are published for folder" in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")


def test_a_csv_file(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "images")
    listed = [f"images/{label}/{number}.png,{label},{split}" for label, split in
              (("red", "train"), ("green", "validation"), ("blue", "test")) for number in range(3)]  # fmt: skip
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *listed]))
    more = ["--data.path", tmp_path / "list.csv"]
    code, described = run_verb("describe", "csv", tmp_path / "out.json", *more)
    assert code == 0 and [name for name in described if "images" in described[name] and name != "unreadable"] == [
        "train",
        "validation",
        "test",
    ]
    code, verified = run_verb("verify", "csv", tmp_path / "out.json", *more)
    assert code == 0
    unlisted = checks_of(verified)["unlisted images"]["items"]
    assert unlisted == [str(tmp_path / "images" / label / "3.png") for label in ("blue", "green", "red")]


def test_icons_are_described_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, described = run_verb("describe", "icons", tmp_path / "out.json", "--no-open")
    assert code == 0 and set(described) == {"train", "test", "images_per_class"}
    code, verified = run_verb("verify", "icons", tmp_path / "out.json", "--no-open")
    assert code == 0 and {check["status"] for check in verified["checks"]} == {"note", "ok"}


def test_download_is_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    asked = []

    def download(name: str, root: Path) -> None:
        asked.append((name, root))
        raise InputError("data.name: the owner's page is gone")

    monkeypatch.setattr(data_verbs, "download", download)
    assert main(["data", "download", "--data.name", "cars", "--data.root", str(tmp_path)]) == 2
    assert asked == [("cars", tmp_path)]
    assert capsys.readouterr().err == "orthoproxy: data.name: the owner's page is gone\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "action"),
        (["verfy", "--data.name", "cub"], "invalid choice: 'verfy' (choose from"),
        (["verify"], "data.name"),
        (["verify", "--data.name", "cubs"], "Expected one of 'icons', 'folder', 'csv', 'cub'"),
        (["verify", "--data.name", "cub"], "data.root: missing"),
        (["describe", "--data.name", "csv"], "data.path: missing"),
        (["describe", "--data.name", "cub", "--data.root", "nowhere"], "data.root: no folder"),
        (["download", "--data.name", "cub"], "data.root: missing; say where to put cub"),
        (["describe", "--data.name", "cub", "--data.rot", "x"], "did you mean data.root?"),
        (["describe", "--data.name", "csv", "--data.path", "x.csv", "--data.workers", "-1"], "data.workers"),
    ],
)
def test_bad_input_is_named(arguments: list[str], message: str, capsys: Any) -> None:
    assert main(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error.strip().splitlines()) <= 2

"""Boxes from lists to pixels: exactly the crop of the upright picture, for training with a margin."""

from pathlib import Path

import numpy as np
import pytest
from errors import error_of
from PIL import Image
from stand_ins import write_cars_by_class, write_cars_in_one_folder, write_cars_in_two_folders, write_cub

from orthoproxy.core.environment import file_versions
from orthoproxy.data import EvaluationImages, TrainingImages, cars_table, csv_table, cub_table, read_image
from orthoproxy.data.audit.scan import scan_images
from orthoproxy.data.audit.verify import verify_images
from orthoproxy.data.images import read_pixels
from orthoproxy.data.transforms import evaluation_transform
from orthoproxy.runs.config import DataConfig
from orthoproxy.runs.dataset import read_table

ROWS = "path,label,left,top,right,bottom\na.jpg,cat,8.5,4,20,15.2\na.jpg,dog,0,0,6,6\na.jpg,cat,,,,\n"


@pytest.fixture(params=[1, 6, 5], ids=["upright", "turned", "mirrored"])
def picture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A JPEG of noise, stored upright or not."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(32, 48, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = request.param
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "list.csv").write_text(ROWS)
    return tmp_path / "a.jpg"


def test_a_box_has_the_pixels_of_the_upright_picture(picture: Path) -> None:
    whole = np.asarray(read_image(picture))
    table = csv_table(picture.with_name("list.csv"))
    assert table["path"].tolist() == [f"{picture}#xywh=8,4,12,12", f"{picture}#xywh=0,0,6,6", str(picture)]
    first, second, _ = table["path"]
    for read in (read_image, read_pixels):
        assert np.array_equal(np.asarray(read(first)), whole[4:16, 8:20])
        assert np.array_equal(np.asarray(read(second)), whole[:6, :6])
    crop, transform = Image.fromarray(whole[4:16, 8:20]), evaluation_transform(32)
    assert np.array_equal(EvaluationImages([first], transform)[0], transform(crop))
    with_margin = TrainingImages([first], [0], transform, box_margin=0.25)
    assert np.array_equal(with_margin[0, 1][0], transform(Image.fromarray(whole[1:19, 5:23])))
    scan = scan_images(table["path"].tolist(), hashes=True)
    assert scan["width"].tolist() == [12, 6, whole.shape[1]] and scan["content"].is_unique
    assert (file_versions(table["path"].tolist())[:, 0] == picture.stat().st_size).all()
    assert "40,40,30,30" in scan_images([f"{picture}#xywh=40,40,30,30"])["error"][0]  # outside
    found = {check.name: check.status for check in verify_images("csv", table, scan)}
    assert {found[name] for name in ("missing files", "unlisted images", "unreadable images")} == {"ok"}


def test_cub_has_a_list_of_boxes(tmp_path: Path) -> None:
    write_cub(tmp_path, (200, 200))
    ids = [line.split()[0] for line in (tmp_path / "images.txt").read_text().splitlines()]
    rows = [f"{image} {image}.0 2.5 10.0 20.0" for image in sorted(ids)]
    (boxes := tmp_path / "bounding_boxes.txt").write_text("\n".join(rows))
    files = cub_table(tmp_path)["path"]
    found = [f"{file}#xywh={image},2,10,21" for file, image in zip(files, ids, strict=True)]
    assert read_table(DataConfig(name="cub", root=str(tmp_path), boxes=True))["path"].tolist() == found
    for damaged in (rows[1:], [f"{rows[0].split()[0]} 5 5 0 5", *rows[1:]]):
        boxes.write_text("\n".join(damaged))
        assert error_of(cub_table, tmp_path, True).path == boxes


def test_cars_have_boxes_that_count_from_one_but_class_folders_have_none(tmp_path: Path) -> None:
    write_cars_in_one_folder(tmp_path / "A", (196, 196))
    write_cars_in_two_folders(tmp_path / "B", (196, 196))
    write_cars_by_class(tmp_path / "C", (196, 196))
    for folder in ("A", "B"):  # the box holds the pixels 3 to 40 and 1 to 30, counted from 1
        expected = cars_table(tmp_path / folder)["path"] + "#xywh=2,0,38,30"
        assert cars_table(tmp_path / folder, boxes=True)["path"].equals(expected)
    assert error_of(cars_table, tmp_path / "C", True).field == "root"

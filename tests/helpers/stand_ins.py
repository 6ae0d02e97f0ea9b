"""Stand-ins for the benchmarks: lists written from their published formats.

They share no code with the readers under test. Rows and ids are shuffled, so that nothing can be right by position.
Classes are of equal size. JPEGs are written only for the classes asked for.
"""

import random
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

# As the published ones: within a make the official order is not that of the letters, a name holds a slash, "smart" is
# lowercase, and the classes for training end with the one Eagle
CAR_NAMES = [f"Dodge Model {number} Sedan 2012" for number in range(97)]
CAR_NAMES += ["Eagle Talon Hatchback 1998", "FIAT 500 Abarth 2012"]
CAR_NAMES += [f"Jeep Model {number} SUV 2012" for number in range(95)]
CAR_NAMES += ["Ram C/V Cargo Van Minivan 2012", "smart fortwo Convertible 2012"]
SUPER_CLASSES = ("bicycle", "cabinet", "chair", "coffee_maker", "fan", "kettle")


def spread(images: int, classes: Iterable[int]) -> list[int]:
    """Give each of so many images a class, in order of the classes."""
    classes = list(classes)
    return sorted(classes[place % len(classes)] for place in range(images))


def shuffled(items: Iterable[Any], seed: int) -> list[Any]:
    items = list(items)
    random.Random(seed).shuffle(items)
    return items


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_pictures(paths: Iterable[tuple[Path, int]], classes: Collection[int]) -> None:
    """Write small JPEGs of the classes asked for, each in shades of a color of its own; every tenth is gray."""
    for number, (path, label) in enumerate(paths):
        if label in classes:
            color = np.random.default_rng(label).integers(30, 226, size=3)
            pixels = color + np.random.default_rng(number).integers(-30, 31, size=(32, 40, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            path.parent.mkdir(parents=True, exist_ok=True)
            (image.convert("L") if number % 10 == 0 else image).save(path, format="JPEG")


def write_cub(root: Path, images: tuple[int, int], pictures: Collection[int] = ()) -> None:
    """Write a folder CUB_200_2011: lists, among them the split for classification, and the litter of an archive."""
    labels = spread(images[0], range(1, 101)) + spread(images[1], range(101, 201))
    ids = shuffled(range(1, len(labels) + 1), seed=0)
    folders = {label: f"{label:03d}.Bird_{label}" for label in range(1, 201)}
    rows = [
        (image, label, f"{folders[label]}/Bird_{label}_{place:04d}_{image}.jpg")
        for place, (image, label) in enumerate(zip(ids, labels, strict=True))
    ]
    write_lines(root / "images.txt", (f"{image} {path}" for image, _, path in shuffled(rows, seed=1)))
    write_lines(root / "image_class_labels.txt", (f"{image} {label}" for image, label, _ in shuffled(rows, seed=2)))
    write_lines(root / "train_test_split.txt", (f"{image} {image % 2}" for image, _, _ in rows))
    write_lines(root / "bounding_boxes.txt", (f"{image} 3.0 2.0 35.0 28.0" for image, _, _ in shuffled(rows, seed=7)))
    write_lines(root / "classes.txt", (f"{label} {folder}" for label, folder in folders.items()))
    for folder in (root, root / "images", root / "images" / folders[1]):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("._images.txt", "._image_class_labels.txt", "._Bird.jpg"):
            (folder / name).write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    write_pictures(((root / "images" / path, label) for _, label, path in rows), pictures)


def write_mat(path: Path, annotations: list[dict[str, object]] | None = None, names: Iterable[str] = ()) -> None:
    """Write a MATLAB file with a struct array of annotations, a cell array of class names, or both."""
    variables: dict[str, np.ndarray] = {}
    if annotations:
        variables["annotations"] = np.empty(len(annotations), dtype=[(name, object) for name in annotations[0]])
        variables["annotations"][:] = [tuple(row.values()) for row in annotations]
    if names := list(names):
        variables["class_names"] = np.array(names, dtype=object)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def car_labels(images: tuple[int, int]) -> list[int]:
    return shuffled(spread(images[0], range(1, 99)) + spread(images[1], range(99, 197)), seed=3)


BOX = {"bbox_x1": np.uint16(3), "bbox_y1": np.uint16(1), "bbox_x2": np.uint16(40), "bbox_y2": np.uint16(30)}


def write_cars_in_one_folder(root: Path, images: tuple[int, int], pictures: Collection[int] = ()) -> None:
    """Write car_ims and cars_annos.mat; its flag `test` is the split for classification."""
    labels = car_labels(images)
    paths = [f"car_ims/{number:06d}.jpg" for number in range(1, len(labels) + 1)]
    rows = [
        {"relative_im_path": path, **BOX, "class": np.uint8(label), "test": np.uint8(place % 2)}
        for place, (path, label) in enumerate(zip(paths, labels, strict=True))
    ]
    (root / "car_ims").mkdir(parents=True, exist_ok=True)
    write_mat(root / "cars_annos.mat", rows, CAR_NAMES)
    write_pictures(((root / path, label) for path, label in zip(paths, labels, strict=True)), pictures)


def write_cars_in_two_folders(
    root: Path, images: tuple[int, int], pictures: Collection[int] = (), test_list: str = "devkit"
) -> None:
    """Write cars_train, cars_test and their lists; `test_list` is where the one with the test's classes goes."""
    labels = car_labels(images)
    parts = {"train": labels[::2], "test": labels[1::2]}
    places = {"train": "devkit/cars_train_annos.mat", "test": f"{test_list}/cars_test_annos_withlabels.mat"}
    for part, chosen in parts.items():
        names = [f"{number:05d}.jpg" for number in range(1, len(chosen) + 1)]
        (root / f"cars_{part}").mkdir(parents=True, exist_ok=True)
        rows = [{**BOX, "class": np.uint8(label), "fname": name} for name, label in zip(names, chosen, strict=True)]
        write_mat(root / places[part], rows)
        paths = (root / f"cars_{part}" / name for name in names)
        write_pictures(zip(paths, chosen, strict=True), pictures)
    write_mat(root / "devkit" / "cars_test_annos.mat", [{**BOX, "fname": "00001.jpg"}, {**BOX, "fname": "00002.jpg"}])
    write_mat(root / "devkit" / "cars_meta.mat", names=CAR_NAMES)


def write_cars_by_class(root: Path, images: tuple[int, int], parts: tuple[str, ...] = ("train", "test")) -> None:
    """Write empty files into a folder for each class, by turns in each part; slashes in names become hyphens."""
    for part in parts:
        for name in CAR_NAMES:
            (root / part / name.replace("/", "-")).mkdir(parents=True)
        (root / part / CAR_NAMES[0] / "._00001.jpg").touch()
    for place, label in enumerate(car_labels(images)):
        folder = root / parts[place % len(parts)] / CAR_NAMES[label - 1].replace("/", "-")
        (folder / f"{place + 1:05d}.jpg").touch()


def write_sop(root: Path, images: tuple[int, int], classes: tuple[int, int], pictures: Collection[int] = ()) -> None:
    """Write a folder Stanford_Online_Products: the lists of training and test, class numbers going on."""
    numbers = {"train": range(1, classes[0] + 1), "test": range(classes[0] + 1, sum(classes) + 1)}
    for count, (part, labels) in zip(images, numbers.items(), strict=True):
        rows = []
        for image, label in enumerate(spread(count, labels), start=1):
            kind = label % len(SUPER_CLASSES)
            rows.append((image, label, kind + 1, f"{SUPER_CLASSES[kind]}_final/{111085122871 + label}_{image}.JPG"))
        lines = [" ".join(map(str, row)) for row in shuffled(rows, seed=4)]
        write_lines(root / f"Ebay_{part}.txt", ["image_id class_id super_class_id path", *lines])
        write_pictures(((root / path, label) for _, label, _, path in rows), pictures)


def write_inshop(
    root: Path, images: tuple[int, int, int], items: tuple[int, int], pictures: Collection[int] = (),
    place: str = "Eval/list_eval_partition.txt", folder: str = "Img",
) -> None:  # fmt: skip
    """Write the list of training, query and gallery, its columns padded as published, and the folder of the images."""
    numbers = shuffled(range(1, sum(items) + 1), seed=5)
    rows = []
    for status, count in zip(("train", "query", "gallery"), images, strict=True):
        of_split = numbers[: items[0]] if status == "train" else numbers[items[0] :]
        for image, number in enumerate(spread(count, of_split)):
            item = f"id_{number:08d}"
            name = f"img/WOMEN/Dresses/{item}/{image:02d}_{len(status)}_front.jpg"
            rows.append((f"{name:<70} {item:<20}{status}", root / folder / name, number))
    lines = [str(len(rows)), "image_name item_id evaluation_status", *(row[0] for row in shuffled(rows, seed=6))]
    write_lines(root / place, lines)
    (root / folder / "img").mkdir(parents=True, exist_ok=True)
    write_pictures(((path, number) for _, path, number in rows), pictures)

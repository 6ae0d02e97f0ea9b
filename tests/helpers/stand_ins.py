"""Stand-ins for the benchmarks: lists written from their published formats, of full size unless asked for less.

They share no code with the readers under test. Rows and ids are shuffled, so that nothing can be right by position. A
class has its share of its split's images, as even as can be; the real sizes differ more. Images are not written, except
JPEGs for the classes asked for.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from scipy.io import savemat

T = TypeVar("T")

CAR_TEXT = """
AM General: Hummer SUV 2000;
Acura: RL Sedan 2012, TL Sedan 2012, TL Type-S 2008, TSX Sedan 2012, Integra Type R 2001, ZDX Hatchback 2012;
Aston Martin: V8 Vantage Convertible 2012, V8 Vantage Coupe 2012, Virage Convertible 2012, Virage Coupe 2012;
Audi: RS 4 Convertible 2008, A5 Coupe 2012, TTS Coupe 2012, R8 Coupe 2012, V8 Sedan 1994, 100 Sedan 1994, 100 Wagon
  1994, TT Hatchback 2011, S6 Sedan 2011, S5 Convertible 2012, S5 Coupe 2012, S4 Sedan 2012, S4 Sedan 2007, TT RS
  Coupe 2012;
BMW: ActiveHybrid 5 Sedan 2012, 1 Series Convertible 2012, 1 Series Coupe 2012, 3 Series Sedan 2012, 3 Series Wagon
  2012, 6 Series Convertible 2007, X5 SUV 2007, X6 SUV 2012, M3 Coupe 2012, M5 Sedan 2010, M6 Convertible 2010, X3
  SUV 2012, Z4 Convertible 2012;
Bentley: Continental Supersports Conv. Convertible 2012, Arnage Sedan 2009, Mulsanne Sedan 2011, Continental GT
  Coupe 2012, Continental GT Coupe 2007, Continental Flying Spur Sedan 2007;
Bugatti: Veyron 16.4 Convertible 2009, Veyron 16.4 Coupe 2009;
Buick: Regal GS 2012, Rainier SUV 2007, Verano Sedan 2012, Enclave SUV 2012;
Cadillac: CTS-V Sedan 2012, SRX SUV 2012, Escalade EXT Crew Cab 2007;
Chevrolet: Silverado 1500 Hybrid Crew Cab 2012, Corvette Convertible 2012, Corvette ZR1 2012, Corvette Ron Fellows
  Edition Z06 2007, Traverse SUV 2012, Camaro Convertible 2012, HHR SS 2010, Impala Sedan 2007, Tahoe Hybrid SUV
  2012, Sonic Sedan 2012, Express Cargo Van 2007, Avalanche Crew Cab 2012, Cobalt SS 2010, Malibu Hybrid Sedan 2010,
  TrailBlazer SS 2009, Silverado 2500HD Regular Cab 2012, Silverado 1500 Classic Extended Cab 2007, Express Van
  2007, Monte Carlo Coupe 2007, Malibu Sedan 2007, Silverado 1500 Extended Cab 2012, Silverado 1500 Regular Cab
  2012;
Chrysler: Aspen SUV 2009, Sebring Convertible 2010, Town and Country Minivan 2012, 300 SRT-8 2010, Crossfire
  Convertible 2008, PT Cruiser Convertible 2008;
Daewoo: Nubira Wagon 2002;
Dodge: Caliber Wagon 2012, Caliber Wagon 2007, Caravan Minivan 1997, Ram Pickup 3500 Crew Cab 2010, Ram Pickup 3500
  Quad Cab 2009, Sprinter Cargo Van 2009, Journey SUV 2012, Dakota Crew Cab 2010, Dakota Club Cab 2007, Magnum Wagon
  2008, Challenger SRT8 2011, Durango SUV 2012, Durango SUV 2007, Charger Sedan 2012, Charger SRT-8 2009;
Eagle: Talon Hatchback 1998; FIAT: 500 Abarth 2012, 500 Convertible 2012;
Ferrari: FF Coupe 2012, California Convertible 2012, 458 Italia Convertible 2012, 458 Italia Coupe 2012;
Fisker: Karma Sedan 2012;
Ford: F-450 Super Duty Crew Cab 2012, Mustang Convertible 2007, Freestar Minivan 2007, Expedition EL SUV 2009, Edge
  SUV 2012, Ranger SuperCab 2011, GT Coupe 2006, F-150 Regular Cab 2012, F-150 Regular Cab 2007, Focus Sedan 2007,
  E-Series Wagon Van 2012, Fiesta Sedan 2012;
GMC: Terrain SUV 2012, Savana Van 2012, Yukon Hybrid SUV 2012, Acadia SUV 2012, Canyon Extended Cab 2012;
Geo: Metro Convertible 1993; HUMMER: H3T Crew Cab 2010, H2 SUT Crew Cab 2009;
Honda: Odyssey Minivan 2012, Odyssey Minivan 2007, Accord Coupe 2012, Accord Sedan 2012;
Hyundai: Veloster Hatchback 2012, Santa Fe SUV 2012, Tucson SUV 2012, Veracruz SUV 2012, Sonata Hybrid Sedan 2012,
  Elantra Sedan 2007, Accent Sedan 2012, Genesis Sedan 2012, Sonata Sedan 2012, Elantra Touring Hatchback 2012,
  Azera Sedan 2012;
Infiniti: G Coupe IPL 2012, QX56 SUV 2011; Isuzu: Ascender SUV 2008; Jaguar: XK XKR 2012;
Jeep: Patriot SUV 2012, Wrangler SUV 2012, Liberty SUV 2012, Grand Cherokee SUV 2012, Compass SUV 2012;
Lamborghini: Reventon Coupe 2008, Aventador Coupe 2012, Gallardo LP 570-4 Superleggera 2012, Diablo Coupe 2001;
Land Rover: Range Rover SUV 2012, LR2 SUV 2012; Lincoln: Town Car Sedan 2011;
MINI: Cooper Roadster Convertible 2012; Maybach: Landaulet Convertible 2012; Mazda: Tribute SUV 2011;
McLaren: MP4-12C Coupe 2012;
Mercedes-Benz: 300-Class Convertible 1993, C-Class Sedan 2012, SL-Class Coupe 2009, E-Class Sedan 2012, S-Class
  Sedan 2012, Sprinter Van 2012;
Mitsubishi: Lancer Sedan 2012;
Nissan: Leaf Hatchback 2012, NV Passenger Van 2012, Juke Hatchback 2012, 240SX Coupe 1998;
Plymouth: Neon Coupe 1999; Porsche: Panamera Sedan 2012; Ram: C/V Cargo Van Minivan 2012;
Rolls-Royce: Phantom Drophead Coupe Convertible 2012, Ghost Sedan 2012, Phantom Sedan 2012;
Scion: xD Hatchback 2012; Spyker: C8 Convertible 2009, C8 Coupe 2009;
Suzuki: Aerio Sedan 2007, Kizashi Sedan 2012, SX4 Hatchback 2012, SX4 Sedan 2012; Tesla: Model S Sedan 2012;
Toyota: Sequoia SUV 2012, Camry Sedan 2012, Corolla Sedan 2012, 4Runner SUV 2012;
Volkswagen: Golf Hatchback 2012, Golf Hatchback 1991, Beetle Hatchback 2012;
Volvo: C30 Hatchback 2012, 240 Sedan 1993, XC90 SUV 2007; smart: fortwo Convertible 2012
"""

# In the official order, one make after the other
CAR_NAMES = [
    f"{make} {model}"
    for make, models in (part.split(": ") for part in " ".join(CAR_TEXT.split()).split("; "))
    for model in models.split(", ")
]
SUPER_CLASSES = ("bicycle", "cabinet", "chair", "coffee_maker", "fan", "kettle")


def spread(images: int, classes: Iterable[int]) -> list[int]:
    """Give each of so many images a class, in order of the classes."""
    classes = list(classes)
    return sorted(classes[place % len(classes)] for place in range(images))


def shuffled(items: Iterable[T], seed: int) -> list[T]:
    items = list(items)
    random.Random(seed).shuffle(items)
    return items


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


def write_cub(root: Path, images: tuple[int, int] = (5864, 5924), pictures: Collection[int] = ()) -> None:
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


BOX = {"bbox_x1": np.uint16(30), "bbox_y1": np.uint16(52), "bbox_x2": np.uint16(246), "bbox_y2": np.uint16(147)}


def write_cars_in_one_folder(
    root: Path, images: tuple[int, int] = (8054, 8131), pictures: Collection[int] = ()
) -> None:
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
    root: Path, images: tuple[int, int] = (8054, 8131), pictures: Collection[int] = (), test_list: str = "devkit"
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


def write_cars_by_class(
    root: Path,
    images: tuple[int, int] = (8054, 8131),
    parts: tuple[str, ...] = ("train", "test"),
) -> None:
    """Write empty files into a folder for each class, by turns in each part; slashes in names become hyphens."""
    for part in parts:
        for name in CAR_NAMES:
            (root / part / name.replace("/", "-")).mkdir(parents=True)
        (root / part / CAR_NAMES[0] / "._00001.jpg").touch()
    for place, label in enumerate(car_labels(images)):
        folder = root / parts[place % len(parts)] / CAR_NAMES[label - 1].replace("/", "-")
        (folder / f"{place + 1:05d}.jpg").touch()


def write_sop(
    root: Path,
    images: tuple[int, int] = (59551, 60502),
    classes: tuple[int, int] = (11318, 11316),
    pictures: Collection[int] = (),
) -> None:
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
    root: Path,
    images: tuple[int, int, int] = (25882, 14218, 12612),
    items: tuple[int, int] = (3997, 3985),
    pictures: Collection[int] = (),
    place: str = "Eval/list_eval_partition.txt",
    folder: str = "Img",
) -> None:
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

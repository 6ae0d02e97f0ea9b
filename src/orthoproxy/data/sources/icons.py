"""The icons dataset: the same concepts drawn by ten icon families, rendered from their fonts.

``icon_names.json`` says what a glyph shows, by its name: families name the same drawing differently and different
drawings alike. ``fonts`` are the fonts of each family with their glyph maps. The naming rules were made by looking at
contact sheets of every class, and are applied in this order: ``glyphs`` (exceptions for single glyphs), ``rewrites``
(regular expressions that remove prefix, style and size), ``family_words`` and ``words`` (one word for one thing),
``homonyms`` (what a family means by a name), ``same`` (names of the same drawing, by class), ``mixed`` (names for
which families draw different things, which are dropped).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import track

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import new_folder
from orthoproxy.data.table import make_table, rank_by_hash

FORMAT_VERSION = 4  # part of the cache key: raise it when the drawing or the names change
MIN_FAMILIES = 3
SIZE = 96  # side of an image in pixels
INK = 80  # longer side of the ink box; the rest is a white margin
EM = 192  # font size at which glyphs are rasterized before they are scaled to INK

# Two images of a class are the same drawing if no pixel differs by more than this, at this size
COPY_SIDE = 24
COPY_DIFFERENCE = 48

# These glyph maps list every glyph twice, with and without the prefix; in Ionicons, two glyphs can share the short name
PREFIX = {"eva": "eva-", "ion": "ion-", "mat": "mdi-", "typicons": "typcn-"}
FLUENT_SIZE = 24
# `circle-arrow-up`, `arrow-circle-up` and `arrow-up-circle` are one: direction, then frame, then "off" go last
WORD_ORDER = {"up": 1, "down": 1, "left": 1, "right": 1, "circle": 2, "square": 2, "triangle": 2, "off": 3}


class Glyph(NamedTuple):
    """One glyph of a font, and its class."""

    label: str
    family: str
    font: Path
    name: str
    code: int


def icons_table(root: str | Path) -> pd.DataFrame:
    """Return the table of the icons dataset, rendering its images on the first call.

    A class is a concept that at least three families draw; a group is a family. Half of the classes, rounded down, are
    for training, chosen by a hash of the name. Exclude a query's own group from its gallery, so that an icon must be
    found in *other* families.

    Parameters
    ----------
    root
        Folder for the images, created; they go to a sub-folder named for the versions of the icon packages.

    Returns
    -------
    pandas.DataFrame
        See `make_table`; grayscale PNG images of 96 x 96 pixels, black on white, with the splits ``train`` and
        ``test``.

    Raises
    ------
    InputError
        If an icon package is missing; they are the extra ``icons``.
    """
    folder = _rendered_folder(Path(root).resolve())
    images = pd.read_csv(folder / "images.csv", dtype=str, keep_default_na=False)
    ranked = rank_by_hash(images["label"], salt="icons")
    train = set(ranked[: len(ranked) // 2])
    return make_table(
        [str(folder / path) for path in images["path"]],
        list(images["label"]),
        split=["train" if label in train else "test" for label in images["label"]],
        group=list(images["group"]),
    )


@cache
def naming_rules() -> dict[str, Any]:
    """Read ``icon_names.json``, with ``words`` and ``same`` turned into a name for each other name."""
    rules = json.loads(files("orthoproxy.data.sources").joinpath("icon_names.json").read_text(encoding="utf-8"))
    same = {**rules["same"], "": rules["mixed"]}
    return {**rules, "words": _invert(rules["words"]), "same": _invert(same)}


def _invert(synonyms: dict[str, str]) -> dict[str, str]:
    return {other: name for name, others in synonyms.items() for other in others.split()}


def concept(family: str, glyph: str) -> str | None:
    """Return what a glyph shows, such as ``gear`` for ``mdi-cog-outline``; None if its name does not tell."""
    rules = naming_rules()
    exception = rules["glyphs"].get(family, {}).get(glyph)
    if exception is not None:
        return exception or None
    for pattern, replacement in rules["rewrites"][family]:
        glyph = re.sub(pattern, replacement, glyph)
    own = rules["family_words"].get(family, {})
    words = [own.get(word) or rules["words"].get(word, word) for word in glyph.split("-")]
    name = "-".join(sorted(words, key=lambda word: WORD_ORDER.get(word, 0)))
    name = re.sub(r"^shopping-(?=(cart|bag|basket)\b)|-shopping$", "", name)
    name = rules["homonyms"][family].get(name, name)
    return rules["same"].get(name, name) or None


def _distribution(family: str) -> metadata.Distribution:
    """Return the installed package of a family; nothing of it is imported."""
    name = f"tkinter-icons-{family}"
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise InputError(f"package {name!r} is missing", hint="pip install 'orthoproxy[icons]'") from None


def package_file(family: str, name: str) -> Path:
    """Return a font or glyph map of a family's package."""
    listed = (Path(str(file.locate())) for file in _distribution(family).files or () if file.name == name)
    path = next(listed, None)
    if path is None or not path.is_file():
        raise InputError(f"package 'tkinter-icons-{family}' lacks {name}", hint="reinstall 'orthoproxy[icons]'")
    return path


def read_glyph_map(family: str, name: str) -> dict[str, int]:
    """Return the code points of a font by sorted glyph name, one name a glyph and one size a drawing."""
    text = package_file(family, name).read_text(encoding="utf-8")
    codes = {glyph: code if isinstance(code, int) else int(code, 16) for glyph, code in json.loads(text).items()}
    names = sorted(glyph for glyph in codes if glyph.startswith(PREFIX.get(family, "")))
    return {glyph: codes[glyph] for glyph in (_select_size(names) if family == "fluent" else names)}


def _select_size(names: list[str]) -> list[str]:
    """Of names such as ``ic-fluent-add-16-filled`` that differ in size alone, keep the one nearest to 24 pixels."""
    by_drawing = defaultdict(list)
    for name in names:
        drawing, size, _ = name.rsplit("-", 2)
        by_drawing[drawing].append((abs(int(size) - FLUENT_SIZE), int(size), name))
    return [min(sizes)[-1] for sizes in by_drawing.values()]


def _rendered_folder(root: Path) -> Path:
    """Return the folder with the images of the installed packages, rendered unless it is complete."""
    versions = {family: _distribution(family).version for family in naming_rules()["fonts"]}
    folder = root / f"icons-{hashlib.sha256(json.dumps([FORMAT_VERSION, versions]).encode()).hexdigest()[:12]}"
    table = folder / "images.csv"
    if not (table.is_file() and all((folder / path).is_file() for path in pd.read_csv(table)["path"])):
        shutil.rmtree(folder, ignore_errors=True)
        with new_folder(folder) as rendered:
            _render(rendered)
    return folder


def _all_glyphs() -> Iterator[Glyph]:
    """Yield every glyph whose name says what it shows, in a fixed order."""
    for family, fonts in naming_rules()["fonts"].items():
        for font, glyph_map in fonts.items():
            path = package_file(family, font)
            for name, code in read_glyph_map(family, glyph_map).items():
                if label := concept(family, name):
                    yield Glyph(label, family, path, name, code)


def _in_enough_families(glyphs: list[Glyph]) -> list[Glyph]:
    """Keep the glyphs of classes that at least `MIN_FAMILIES` families draw."""
    families = defaultdict(set)
    for glyph in glyphs:
        families[glyph.label].add(glyph.family)
    return [glyph for glyph in glyphs if len(families[glyph.label]) >= MIN_FAMILIES]


def draw(font: ImageFont.FreeTypeFont, code: int) -> Image.Image | None:
    """Draw a glyph black on white, centered, its ink box scaled to the same longer side; None without ink."""
    left, top, right, bottom = font.getbbox(chr(code))
    ink = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(ink).text((-left, -top), chr(code), fill=255, font=font)
    box = ink.getbbox()
    if box is None:
        return None
    ink = ink.crop(box)
    width, height = (max(1, round(side * INK / max(ink.size))) for side in ink.size)
    ink = ink.resize((width, height), Image.Resampling.LANCZOS)
    image = Image.new("L", (SIZE, SIZE), 255)
    image.paste(0, ((SIZE - width) // 2, (SIZE - height) // 2), ink)
    return image


def drop_copies(images: dict[Glyph, Image.Image]) -> dict[Glyph, Image.Image]:
    """Of images that are equal, keep the first, or none if their classes differ, as any label may be wrong."""
    copies = defaultdict(list)
    for glyph, image in images.items():
        copies[image.tobytes()].append(glyph)
    distinct = [glyphs[0] for glyphs in copies.values() if len({glyph.label for glyph in glyphs}) == 1]
    drawings: dict[str, list[tuple[str, np.ndarray]]] = defaultdict(list)  # of each class: family and small image
    kept = {}
    for glyph in distinct:
        small = np.asarray(images[glyph].resize((COPY_SIDE, COPY_SIDE), Image.Resampling.BOX), dtype=int)
        others = (drawing for family, drawing in drawings[glyph.label] if family != glyph.family)
        if all(np.abs(small - drawing).max() >= COPY_DIFFERENCE for drawing in others):
            drawings[glyph.label].append((glyph.family, small))
            kept[glyph] = images[glyph]
    return kept


def _render(folder: Path) -> None:
    """Write the images of all classes, one sub-folder a family, and last their table, images.csv."""
    candidates = _in_enough_families(list(_all_glyphs()))  # the others need no drawing
    fonts = {
        path: ImageFont.truetype(str(path), EM, layout_engine=ImageFont.Layout.BASIC)  # which every system has
        for path in {glyph.font for glyph in candidates}
    }
    console = Console(stderr=True)
    glyphs = track(candidates, "draw icons", console=console)
    images = drop_copies({glyph: image for glyph in glyphs if (image := draw(fonts[glyph.font], glyph.code))})
    kept = _in_enough_families(list(images))
    paths = [f"{glyph.family}/{glyph.font.stem}-{glyph.name}.png" for glyph in kept]
    for family in naming_rules()["fonts"]:
        (folder / family).mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:  # writing thousands of files takes longer than drawing them
        written = pool.map(lambda glyph, path: images[glyph].save(folder / path), kept, paths)
        list(track(written, "write icons", len(kept), console=console))
    rows = [(path, glyph.label, glyph.family) for path, glyph in zip(paths, kept, strict=True)]
    pd.DataFrame(rows, columns=["path", "label", "group"]).to_csv(folder / "images.csv", index=False)

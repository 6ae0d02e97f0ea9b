"""The icons data set: what an icon depicts, drawn by ten icon families and rendered from their fonts."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from orthoproxy.core.progress import track
from orthoproxy.data.sources.icon_fonts import FONTS, distribution, package_file, read_glyph_map
from orthoproxy.data.sources.icon_names import concept
from orthoproxy.data.table import make_table, rank_by_hash

# Part of the cache's key: raise it when the drawing or the names change, so that old images are not taken for new ones
FORMAT_VERSION = 4
MINIMUM_FAMILIES = 3
SIZE = 96  # side of an image in pixels
INK = 80  # longer side of the ink box; the margin around it is white
EM = 192  # glyphs are rasterised at this font size and scaled down to INK, so most are reduced, few enlarged

# Two images of a class are one drawing if no pixel differs by more than COPY of 255 levels at COPY_SIDE pixels a side
COPY_SIDE = 24
COPY = 48


class Glyph(NamedTuple):
    """One picture of a font, and the class it may belong to."""

    label: str
    family: str
    font: Path
    name: str
    code: int


def icons_table(root: str | Path) -> pd.DataFrame:
    """Return the table of the icons, and render their images first where that has not been done.

    A class is a concept (`concept`) that at least three families draw; a group is a family. Half the classes, rounded
    down, are for training, by hash of the name. Leave a query's own group out of its gallery: an icon must be found
    in *other* families.

    Parameters
    ----------
    root
        Folder for the images, made if need be. They go to a sub-folder named for the versions of the icon packages.
        The first call takes seconds, the next ones read what it wrote.

    Returns
    -------
    pandas.DataFrame
        As of `make_table`: absolute paths of grey PNG images, black on white, 96 x 96 pixels; splits ``train`` and
        ``test``; role ``both``.

    Raises
    ------
    InputError
        When a package is missing (they are the extra ``icons``).

    Examples
    --------
    Rendering takes seconds; what makes a class does not:

    >>> [concept(family, glyph) for family, glyph in [("bs", "gear-fill"), ("lucide", "icon-cog"), ("gmi", "settings")]]
    ['gear', 'gear', 'gear']
    """
    folder = _rendered(Path(root).resolve())
    images = pd.read_csv(folder / "images.csv", dtype=str, keep_default_na=False)
    ranked = rank_by_hash(images["label"], salt="icons")
    train = set(ranked[: len(ranked) // 2])
    return make_table(
        [str(folder / path) for path in images["path"]],
        list(images["label"]),
        split=["train" if label in train else "test" for label in images["label"]],
        group=list(images["group"]),
    )


def _rendered(root: Path) -> Path:
    """Return the folder with the images of the installed packages, rendered if there is none or only part of one."""
    folder = root / f"icons-{_cache_key()}"
    if _is_complete(folder):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".icons-", dir=root) as scratch:
        _render(made := Path(scratch) / "icons")
        try:
            made.rename(folder)
        except OSError:
            if not _is_complete(folder):  # else another process was faster, with the same images
                raise
    return folder


def _cache_key() -> str:
    """Return a short name for all that decides the images: versions of the packages and `FORMAT_VERSION`."""
    versions = {family: distribution(family).version for family in FONTS}
    return hashlib.sha256(json.dumps([FORMAT_VERSION, versions]).encode()).hexdigest()[:12]


def _is_complete(folder: Path) -> bool:
    """Tell whether the folder's table is there, written last, and every image of it."""
    table = folder / "images.csv"
    return table.is_file() and all((folder / path).is_file() for path in pd.read_csv(table)["path"])


def _all_glyphs() -> Iterator[Glyph]:
    """Yield every glyph whose name says what it depicts, in a fixed order."""
    for family, fonts in FONTS.items():
        for font, glyph_map in fonts.items():
            path = package_file(family, font)
            for name, code in read_glyph_map(family, glyph_map).items():
                if label := concept(family, name):
                    yield Glyph(label, family, path, name, code)


def in_enough_families(glyphs: list[Glyph]) -> list[Glyph]:
    """Keep the glyphs of classes that at least `MINIMUM_FAMILIES` families have.

    Parameters
    ----------
    glyphs
        Any.

    Returns
    -------
    list of Glyph
        Those kept, in the same order.

    Examples
    --------
    >>> def glyph(label, family):
    ...     return Glyph(label, family, Path("font.ttf"), label, 0)
    >>> three = [glyph("bell", "bs"), glyph("bell", "eva"), glyph("bell", "fa")]
    >>> in_enough_families([*three, glyph("bug", "bs"), glyph("bug", "bs"), glyph("bug", "fa")]) == three
    True
    """
    families = defaultdict(set)
    for glyph in glyphs:
        families[glyph.label].add(glyph.family)
    return [glyph for glyph in glyphs if len(families[glyph.label]) >= MINIMUM_FAMILIES]


def draw(font: ImageFont.FreeTypeFont, code: int) -> Image.Image | None:
    """Draw a glyph black on white, its ink box scaled to the same longer side for all families, and centred.

    Parameters
    ----------
    font
        At size `EM`.
    code
        Code point of the glyph.

    Returns
    -------
    PIL.Image.Image or None
        Grey, 96 x 96 pixels; none for a glyph without ink.

    Examples
    --------
    >>> font = ImageFont.truetype(package_file("lucide", "lucide.ttf"), EM)
    >>> draw(font, read_glyph_map("lucide", "glyphmap.json")["icon-x"]).size
    (96, 96)
    >>> draw(font, ord(" ")) is None
    True
    """
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


def _load_font(path: Path) -> ImageFont.FreeTypeFont:
    """Load a font at size `EM`; the basic layout, as icons need no shaping and not every system has the other."""
    return ImageFont.truetype(str(path), EM, layout_engine=ImageFont.Layout.BASIC)


def clean(images: dict[Glyph, Image.Image]) -> dict[Glyph, Image.Image]:
    """Drop copies: of images equal in every pixel, keep the first; if their classes differ, none, as any may be wrong.

    Families also take over each other's drawings, which then differ by the rounding of outlines alone. To find such a
    copy is no achievement, so of these too the first family's is kept.

    Parameters
    ----------
    images
        The image of each glyph.

    Returns
    -------
    dict
        Those kept, in the same order.

    Examples
    --------
    >>> def glyph(label, family):
    ...     return Glyph(label, family, Path("font.ttf"), label, 0)
    >>> black, white = Image.new("L", (2, 2), 0), Image.new("L", (2, 2), 255)
    >>> same = {glyph("dot", "bs"): black, glyph("dot", "fa"): black}
    >>> contested = {glyph("x", "bs"): white, glyph("o", "fa"): white}
    >>> [(glyph.label, glyph.family) for glyph in clean(same | contested)]
    [('dot', 'bs')]
    """
    copies = defaultdict(list)
    for glyph, image in images.items():
        copies[image.tobytes()].append(glyph)
    kept = [glyphs[0] for glyphs in copies.values() if len({glyph.label for glyph in glyphs}) == 1]
    drawings: dict[str, list[tuple[str, np.ndarray]]] = defaultdict(list)  # of each class: family and small image
    for glyph in kept.copy():
        small = np.asarray(images[glyph].resize((COPY_SIDE, COPY_SIDE), Image.Resampling.BOX), dtype=int)
        others = (drawn for family, drawn in drawings[glyph.label] if family != glyph.family)
        if any(np.abs(small - drawn).max() < COPY for drawn in others):
            kept.remove(glyph)
        else:
            drawings[glyph.label].append((glyph.family, small))
    return {glyph: images[glyph] for glyph in kept}


def _render(folder: Path) -> None:
    """Write the images of all classes to a folder, one sub-folder a family, and last their table, images.csv."""
    candidates = in_enough_families(list(_all_glyphs()))  # the others need no drawing
    fonts = {path: _load_font(path) for path in {glyph.font for glyph in candidates}}
    glyphs = track(candidates, "draw icons", total=len(candidates))
    drawn = {glyph: image for glyph in glyphs if (image := draw(fonts[glyph.font], glyph.code))}
    images = clean(drawn)
    kept = in_enough_families(list(images))
    paths = [f"{glyph.family}/{glyph.font.stem}-{glyph.name}.png" for glyph in kept]
    for family in FONTS:
        (folder / family).mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:  # making thousands of files takes longer than drawing them
        written = pool.map(lambda glyph, path: images[glyph].save(folder / path), kept, paths)
        list(track(written, "write icons", total=len(kept)))
    rows = [(path, glyph.label, glyph.family) for path, glyph in zip(paths, kept, strict=True)]
    pd.DataFrame(rows, columns=["path", "label", "group"]).to_csv(folder / "images.csv", index=False)

"""The icons data set: one drawn concept in many icon families, rendered from fonts on PyPI."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageFont

from orthoproxy.data.icon_names import concept
from orthoproxy.data.table import make_table, rank_by_hash
from orthoproxy.errors import InputError

FORMAT_VERSION = 1
MIN_FAMILIES = 3
SIZE, INK = 96, 80
EM = 256

# Fonts of each family, and the glyph map beside each
FAMILIES = {
    "bs": {"bootstrap.ttf": "glyphmap.json"},
    "eva": {"eva-icons.ttf": "glyphmap.json"},
    "fa": {
        "fa-solid-900.ttf": "glyphmap-solid.json",
        "fa-regular-400.ttf": "glyphmap-regular.json",
        "fa-brands-400.ttf": "glyphmap-brands.json",
    },
    "fluent": {
        "FluentSystemIcons-Filled.ttf": "glyphmap-filled.json",
        "FluentSystemIcons-Regular.ttf": "glyphmap-regular.json",
        "FluentSystemIcons-Light.ttf": "glyphmap-light.json",
    },
    "gmi": {
        "MaterialIcons-Regular.ttf": "glyphmap-baseline.json",
        "MaterialIconsOutlined-Regular.otf": "glyphmap-outlined.json",
        "MaterialIconsRound-Regular.otf": "glyphmap-round.json",
        "MaterialIconsSharp-Regular.otf": "glyphmap-sharp.json",
    },
    "ion": {"ionicons.ttf": "glyphmap.json"},
    "lucide": {"lucide.ttf": "glyphmap.json"},
    "mat": {"materialdesignicons-webfont.ttf": "glyphmap.json"},
    "remix": {"remixicon.ttf": "glyphmap.json"},
    "typicons": {"typicons.ttf": "glyphmap.json"},
}


class Glyph(NamedTuple):
    label: str
    family: str
    font: Path
    code: int
    name: str


def icons_table(root: Path) -> pd.DataFrame:
    root = Path(root).resolve()
    versions = {family: package(family).version for family in FAMILIES}
    key = hashlib.sha256(json.dumps([FORMAT_VERSION, versions]).encode()).hexdigest()[:12]
    folder = root / f"icons-{key}"
    if not (folder / "images.csv").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".icons-") as temporary:
            render(Path(temporary) / "icons")
            (Path(temporary) / "icons").rename(folder)
    images = pd.read_csv(folder / "images.csv", keep_default_na=False, dtype=str)
    ranked = rank_by_hash(images["label"], salt="icons")
    train = set(ranked[: len(ranked) // 2])
    return make_table(
        [str(folder / path) for path in images["path"]],
        list(images["label"]),
        split=["train" if label in train else "test" for label in images["label"]],
        group=list(images["group"]),
    )


def package(family: str) -> metadata.Distribution:
    name = f"tkinter-icons-{family}"
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise InputError(f"icons: the package {name} is not installed; pip install 'orthoproxy[icons]'") from None


def find(family: str, name: str) -> Path:
    for file in package(family).files or []:
        if file.name == name:
            return Path(str(file.locate()))
    raise InputError(f"icons: tkinter-icons-{family} has no {name}")


def glyphs() -> Iterator[Glyph]:
    for family, fonts in FAMILIES.items():
        for font, table in fonts.items():
            codes = json.loads(find(family, table).read_text())
            if family == "fluent":
                codes = one_size(codes)
            path = find(family, font)
            seen = set()
            for name, code in sorted(codes.items()):
                code = code if isinstance(code, int) else int(code, 16)
                label = concept(family, name)
                if (label, code) not in seen:
                    seen.add((label, code))
                    yield Glyph(label, family, path, code, name)


def one_size(codes):
    best = {}
    for name in codes:
        match = re.fullmatch(r"(.*)-(\d+)-(\w+)", name)
        rank = (abs(int(match[2]) - 24), int(match[2]))
        best[match[1]] = min(best.get(match[1], (rank, name)), (rank, name))
    return {name: codes[name] for _, name in best.values()}


def in_enough_families(rows):
    families = {}
    for row in rows:
        families.setdefault(row[0].label, set()).add(row[0].family)
    return [row for row in rows if len(families[row[0].label]) >= MIN_FAMILIES]


def draw(font: ImageFont.FreeTypeFont, code: int) -> Image.Image | None:
    mask = font.getmask(chr(code), mode="L")
    image = Image.frombytes("L", mask.size, bytes(mask))
    box = image.getbbox()
    if box is None:
        return None
    image = image.crop(box)
    scale = INK / max(image.size)
    size = [max(1, round(scale * side)) for side in image.size]
    image = image.resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new("L", (SIZE, SIZE), 255)
    black = Image.new("L", size, 0)
    canvas.paste(black, ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2), image)
    return canvas


def render(folder: Path):
    fonts = {}
    rows = in_enough_families([(g,) for g in glyphs()])
    seen = set()
    kept = []
    for (g,) in rows:
        if g.font not in fonts:
            fonts[g.font] = ImageFont.truetype(str(g.font), EM, layout_engine=ImageFont.Layout.BASIC)
        image = draw(fonts[g.font], g.code)
        if image is None or image.tobytes() in seen:
            continue
        seen.add(image.tobytes())
        kept.append((g, image))
    kept = in_enough_families(kept)
    folder.mkdir()
    out = []
    for i, (g, image) in enumerate(kept):
        path = f"{g.family}/{g.font.stem}-{g.name}.png"
        (folder / g.family).mkdir(exist_ok=True)
        image.save(folder / path)
        out.append((path, g.label, g.family))
    pd.DataFrame(out, columns=["path", "label", "group"]).to_csv(folder / "images.csv", index=False)

"""Recall@1 of whole pictures, of the objects' boxes, and of boxes a tenth off, by the untrained EfficientNet-Lite0.

    python benchmarks/boxes.py --photos data

Icons of test classes, 32 to 96 pixels large, are pasted on pictures of 224 x 224 pixels: parts of the photographs below
--photos, or noise where there are none. The pictures and their list with the boxes are written to --out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from measure import arguments, report
from PIL import Image, ImageOps

from orthoproxy.data import csv_table, icons_table
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation import Scoring, evaluate
from orthoproxy.models import Encoder, load_weights
from orthoproxy.runs.dataset import user_cache

SIDE, EDGES = 224, ["left", "top", "right", "bottom"]


def main() -> None:
    options = arguments(__doc__ or "", photos="data", classes=100, out="runs/boxes")
    photos = sorted(Path(options.photos).rglob("*.jpg"))
    pictures = paste_icons(options.classes, photos, Path(options.out))
    encoder = Encoder("tf_efficientnet_lite0", None, image_size=128)
    load_weights(encoder, "package:efficientnet-lite0")
    moved, size = pictures.copy(), pictures[["right", "bottom"]].to_numpy() - pictures[["left", "top"]].to_numpy()
    moved[EDGES] += np.tile(size * np.random.default_rng(1).choice([-0.1, 0.1], size.shape), 2)
    variants = {
        "whole picture": pictures.drop(columns=EDGES),
        "box": pictures,
        "box moved by 10 % of its size": moved,
    }
    rows = []
    for name, variant in variants.items():
        variant.to_csv(path := Path(options.out) / "pictures.csv", index=False)
        found = evaluate(Embedder(encoder, "stretch"), csv_table(path), scoring=Scoring(recall_at=(1,)), progress=True)
        rows.append({"embedded": name, "Recall@1, %": str(found.model["recall@1"])})
    background = f"parts of {len(photos):,} photographs" if photos else "noise"
    notes = (
        f"{len(pictures):,} icons of {options.classes} classes, among other families, on {background}; [95 % interval]."
    )
    report("boxes", "Objects in pictures, untrained EfficientNet-Lite0", list(rows[0]), rows, notes)


def paste_icons(classes: int, photos: list[Path], out: Path) -> pd.DataFrame:
    """Write a picture with an icon somewhere, in some color, for each image of the first test classes."""
    table, generator, rows = icons_table(user_cache() / "icons").query("split == 'test'"), np.random.default_rng(0), []
    out.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(table[table["label"].isin(sorted(set(table["label"]))[:classes])].itertuples()):
        picture, side = background(photos, generator), int(generator.integers(32, 97))
        left, top = generator.integers(0, SIDE - side, 2).tolist()
        icon = ImageOps.invert(Image.open(str(row.path)).convert("L")).resize((side, side))
        picture.paste(tuple(generator.integers(0, 256, 3).tolist()), (left, top), icon)
        picture.save(out / f"{number}.png")
        rows.append((f"{number}.png", row.label, row.group, left, top, left + side, top + side))
    return pd.DataFrame(rows, columns=["path", "label", "group", *EDGES]).astype(dict.fromkeys(EDGES, float))


def background(photos: list[Path], generator: np.random.Generator) -> Image.Image:
    if not photos:
        coarse = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    photo = Image.open(photos[int(generator.integers(len(photos)))]).convert("RGB")
    return ImageOps.fit(photo, (SIDE, SIDE), centering=tuple(generator.random(2)))


if __name__ == "__main__":
    main()

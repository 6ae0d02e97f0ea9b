"""Scores of the untrained EfficientNet-Lite0 on icons under each rule of `evaluation.exclude`.

python benchmarks/exclusion.py
"""

from __future__ import annotations

import itertools

from measure import markdown

from orthoproxy.data import icons_table
from orthoproxy.data.audit.duplicates import find_copies
from orthoproxy.data.table import select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation import Scoring, score
from orthoproxy.models import Encoder, load_weights
from orthoproxy.runs.dataset import user_cache

METRICS = ("recall@1", "map@r", "map", "minp")


def main() -> None:
    encoder = Encoder("tf_efficientnet_lite0", embedding_dim=None, image_size=64)
    load_weights(encoder, "package:efficientnet-lite0")
    table = select_split(icons_table(user_cache() / "icons"), "test")
    table["copies"] = find_copies(table)
    embeddings = Embedder(encoder, resize=64).embed(table["path"].tolist())
    rows = []
    for duplicates, rule in itertools.product((False, True), ("none", "own_class_in_group", "group")):
        found = score(embeddings, None, table, Scoring(map=True, exclude=rule, exclude_duplicates=duplicates))
        scores = {name: str(found.model[name]) for name in METRICS}
        pairs = "kept" if found.duplicate_pairs is None else f"{found.duplicate_pairs:,} pairs"
        rows.append({"exclude": rule, "near copies": pairs, "queries": f"{found.queries:,}", **scores})
    print(markdown(list(rows[0]), rows))


if __name__ == "__main__":
    main()

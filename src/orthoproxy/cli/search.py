"""`orthoproxy search`."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from orthoproxy.cli.index import CATALOG
from orthoproxy.cli.options import Parser, at_least
from orthoproxy.core.errors import InputError

if TYPE_CHECKING:
    from orthoproxy.catalog.catalog import Hit


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("catalog", metavar="CATALOG", help=CATALOG)
    add("images", nargs="+", metavar="IMAGE", help="Image files to search with; FILE#xywh=10,20,64,48 for a box.")
    add("--together", action="store_true", help="Search once, for what is similar to all images.")
    add("--unlike", action="append", default=[], metavar="IMAGE", help="Move away from this image; may be repeated.")
    add("-k", type=at_least(1), default=10, help="Results per image (default: 10).")
    add("--expand", type=at_least(1), metavar="N", help="Search again with the N best results added to the query.")
    add("--where", metavar="FILTER", help="A filter on label, group and path, such as 'label != \"x\"'.")
    add("--diverse", action="store_true", help="At most one result per group (per label if no group).")
    text = "Drop less similar results; auto: the model's threshold (the default with --vote)."
    add("--min-similarity", type=_similarity, metavar="X", help=text)
    text = "Answer with the label of the similar results, or unknown below the minimum."
    add("--vote", action="store_true", help=text)
    add("--model", help="Where the catalog's model is now, if it was moved.")
    parser.add_json()
    parser.add_device()


def run(options: Any) -> None:
    import numpy as np

    from orthoproxy.catalog.catalog import Catalog, combined_query, expand, load_catalog_model, vote_of_hits
    from orthoproxy.catalog.filters import parse_filter

    if options.where is not None:
        parse_filter(options.where)  # before a model is loaded
    with Catalog.open(options.catalog) as catalog:
        model = load_catalog_model(catalog, options.device, options.model)
        minimum = options.min_similarity
        if minimum is None:
            minimum = "auto" if options.vote else -math.inf
        if minimum == "auto":
            minimum = None if options.expand else model.threshold
        if minimum is None:
            problem = f"the model has no threshold{' for expanded queries' if options.expand else ''}"
            raise InputError(problem, field="min_similarity", expected="a number from -1 to 1")
        embeddings, unlike = model.embed(options.images), model.embed(options.unlike)
        groups = [embeddings] if options.together else list(embeddings[:, None])
        queries = np.stack([combined_query(group, unlike) for group in groups])
        if options.expand:
            queries = expand(catalog, queries, options.expand, options.where)
        names = [", ".join(options.images)] if options.together else options.images
        results, printed = [], []
        for image, hits in zip(names, catalog.search(queries, options.k, options.where, options.diverse), strict=True):
            similar = [hit for hit in hits if hit.similarity >= minimum]
            title = image if similar else f"{image}: no match"
            records = [{**vars(hit), "box": hit.box and hit.box.text} for hit in similar]
            results.append({"image": image, "results": records})
            if options.vote:
                label, share = vote_of_hits(similar)
                results[-1] |= {"label": label, "share": share}
                title = f"{image}: {label}, {100 * share:.0f} % of the vote" if label else f"{image}: unknown"
            printed.append((title, similar))
        options.write_json(results)
        for title, similar in printed:
            _print_hits(title, similar)


def _similarity(text: str) -> float | str:
    try:
        value = text if text == "auto" else float(text)
    except ValueError:
        value = math.nan
    if isinstance(value, float) and not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} (expected a number from -1 to 1, or auto)")
    return value


def _print_hits(title: str, hits: list[Hit]) -> None:
    print(title)
    grouped = any(hit.group for hit in hits)
    for rank, hit in enumerate(hits, start=1):
        group = f"  {hit.group}" if grouped else ""
        print(f"{rank:4}  {hit.similarity:.3f}  {hit.label}{group}  {hit.path}{hit.box or ''}")

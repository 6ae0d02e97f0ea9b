"""Draw the figures of README and docs.

python docs/figures.py               figures of README, docs/method.md and docs/findings.md
python docs/figures.py runs/icons    also the nearest neighbors found by a run, for README.md
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from PIL import Image

from orthoproxy import soft_orthogonality
from orthoproxy.losses.regularizers import koleo, mutual_coherence
from orthoproxy.reports.examples import choose_rows, find_neighbors, rank_queries
from orthoproxy.reports.figures import COLORS, SERIES, label_axes, report_style
from orthoproxy.reports.html import load_thumbnail
from orthoproxy.reports.text import shorten
from orthoproxy.runs.evaluate import evaluate_run
from orthoproxy.runs.run_folder import RunFolder
from orthoproxy.studies import read_results, read_study, summarize_methods

DOCS, STUDIES = Path(__file__).parent, Path(__file__).parent.parent / "studies"
CLASSES, DIM, STEPS = 60, 16, 300
DASHED = {"color": COLORS["muted"], "linestyle": (0, (4, 2)), "linewidth": 1.2}
WEIGHT = "loss.proxy_regularizer.weight"
SIZES = ["frozen-icons-d32", "frozen-icons-d64", "frozen-icons", "frozen-icons-d256", "frozen-icons-d512"]
STRENGTHS = [0, 0.3, 10]
CHECK_MARK = (([0.78, 0.82, 0.90], [0.16, 0.10, 0.22]),)  # strokes in the corner of a tile
CROSS_MARK = (([0.79, 0.89], [0.11, 0.21]), ([0.79, 0.89], [0.21, 0.11]))
FORMS = {"so-excess": "excess", "so-sum": "sum", "so-sum-raw": "sum, unnormalized"}


def minimize(measure):
    """Return unit rows of random direction, after gradient steps on a measure."""
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(CLASSES, DIM, dtype=torch.float64)).requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=0.01)
    for _ in range(STEPS if measure else 0):
        optimizer.zero_grad()
        measure(rows).backward()
        optimizer.step()
    return torch.nn.functional.normalize(rows.detach()).numpy()


@report_style
def spread_figure():
    """Optimize random proxies with each regularizer; draw eigenvalues and pairwise cosines."""
    measures = {
        "random": None,
        "Soft Orthogonality": lambda rows: soft_orthogonality(rows, scaling="excess"),
        "mutual coherence": mutual_coherence,
        "KoLeo": koleo,
    }
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    directions, pairs = figure.subplots(1, 2)
    for (name, measure), color in zip(measures.items(), [COLORS["ink"], *SERIES], strict=False):
        rows = minimize(measure)
        directions.plot(np.arange(1, DIM + 1), np.linalg.eigvalsh(rows.T @ rows)[::-1], color=color, label=name)
        cosines = np.sort(np.abs(rows @ rows.T)[np.triu_indices(CLASSES, 1)])
        pairs.plot(cosines, np.linspace(0, 1, len(cosines)), color=color, label=name)
    directions.axhline(CLASSES / DIM, **DASHED)
    directions.annotate("C/D", (DIM, CLASSES / DIM), xytext=(0, 4), textcoords="offset points", ha="right")
    directions.set_ylim(0)
    pairs.axvline(np.sqrt((CLASSES - DIM) / (DIM * (CLASSES - 1))), **DASHED)
    pairs.yaxis.set_major_formatter(PercentFormatter(1))
    label_axes(directions, "direction, from the most used", "eigenvalues of PᵀP")
    label_axes(pairs, "|cosine|", "pairs up to here; dashed: Welch bound of the closest")
    figure.legend(*directions.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


def tuning_results(study):
    """Read the results of a study with the seeds that tried all weights."""
    results = read_results(STUDIES / "results" / f"{study}.parquet")
    tuning = {r.seed for r in results if r.method in FORMS and not r.test}
    return [r for r in results if r.seed in tuning]


def by_weight(results, method, measure):
    """Return the weights, and mean and standard deviation of a measure over the trials with each."""
    runs = defaultdict(list)
    for result in results:
        if result.method == method:
            runs[result.setting[WEIGHT]].append(measure(result))
    weights = sorted(runs)
    return weights, [np.mean(runs[w]) for w in weights], [np.std(runs[w]) for w in weights]


@report_style
def weight_figure(studies):
    """Draw effective rank and validation score over the weight, one row of axes per study."""
    measures = {
        "effective rank of the proxies, of 128": lambda r: r.geometry["effective_rank"],
        "Recall@1 on validation classes, %": lambda r: 100 * r.score("validation", "recall@1"),
    }
    figure = Figure(figsize=(8.4, 2.9 * len(studies)), layout="constrained")
    rows = figure.subplots(len(studies), len(measures), sharex=True, squeeze=False)
    for row, (study, what) in zip(rows, studies.items(), strict=True):
        results = tuning_results(study)
        for axes, (title, measure) in zip(row, measures.items(), strict=True):
            plain = [measure(r) for r in results if r.method == "proxy-anchor"]
            axes.axhline(np.mean(plain), label="Proxy Anchor alone", **DASHED)
            for (method, name), color in zip(FORMS.items(), SERIES, strict=False):
                weights, means, deviations = by_weight(results, method, measure)
                if weights:
                    axes.errorbar(weights, means, deviations, color=color, label=name, marker="o", markersize=4)
            axes.set_xscale("log")
            label_axes(axes, "lambda" if axes.get_subplotspec().is_last_row() else "", f"{what}: {title}")
    figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


@report_style
def size_figure():
    """Draw effective rank, largest cosine and validation score over the embedding dimension."""
    measures = {
        "effective rank, of min(C, D)": lambda r: (
            r.geometry["effective_rank"] / min(r.geometry["dim"], r.geometry["classes"])
        ),
        "largest cosine of two proxies": lambda r: r.geometry["largest_cosine"],
        "Recall@1 on validation classes, %": lambda r: 100 * r.score("validation", "recall@1"),
    }
    studies = {int(name.rpartition("-d")[2]) if "-d" in name else 128: tuning_results(name) for name in SIZES}
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    for axes, (title, measure) in zip(figure.subplots(1, len(measures)), measures.items(), strict=True):
        for weight, color in zip(STRENGTHS, SERIES, strict=False):
            method = "so-excess" if weight else "proxy-anchor"
            name = f"excess, lambda {weight}" if weight else "Proxy Anchor alone"
            of_size = [
                [measure(r) for r in results if r.method == method and r.setting.get(WEIGHT, 0) == weight]
                for results in studies.values()
            ]
            means, deviations = [np.mean(several) for several in of_size], [np.std(several) for several in of_size]
            axes.errorbar(list(studies), means, deviations, color=color, label=name, marker="o", markersize=4)
        if title.startswith("Recall"):
            untrained = [r.score("validation", "recall@1", "untrained") for r in studies[128]]
            axes.axhline(100 * np.mean(untrained), label="untrained, all features", **DASHED)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(studies), list(map(str, studies)))
        label_axes(axes, "embedding dimension D", title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


@report_style
def birds_figure():
    """Draw MAP@R on validation classes over the epochs, and Recall@1 on test classes with intervals."""
    results = read_results(STUDIES / "results" / "claim-cub100.parquet")
    rows = summarize_methods(read_study(STUDIES / "claim-cub100.yaml"), results, "recall@1")
    summaries = {row.method: row for row in rows}
    initializations = {"proxy-anchor": "data-driven initialization", "random": "random initialization"}
    figure = Figure(figsize=(8.4, 2.7), layout="constrained")
    curves, scores = figure.subplots(1, 2)
    for (method, name), color in zip(initializations.items(), SERIES, strict=False):
        seeds = 100 * np.array([[epoch["map@r"] for epoch in r.curve] for r in results if r.method == method])
        epochs = np.arange(1, seeds.shape[1] + 1)
        curves.plot(epochs, seeds.mean(axis=0), color=color, marker="o", markersize=4, label=name)
        curves.fill_between(epochs, seeds.min(axis=0), seeds.max(axis=0), color=color, alpha=0.2, linewidth=0)
    untrained = np.mean([r.score("validation", "map@r", "untrained") for r in results])
    curves.axhline(100 * untrained, label="untrained encoder", **DASHED)
    label_axes(curves, "epoch", "MAP@R on validation classes, %")
    curves.legend(loc="lower right")

    bars = {
        "untrained encoder": (summaries["random"].untrained, COLORS["muted"]),
        "random initialization": (summaries["random"].mean, SERIES[1]),
        "data-driven initialization": (summaries["proxy-anchor"].mean, SERIES[0]),
        "with Soft Orthogonality, sum": (summaries["so-sum"].mean, SERIES[2]),
        "with Soft Orthogonality, scaled": (summaries["so-excess"].mean, SERIES[3]),
    }
    for y, (score, color) in enumerate(bars.values()):
        scores.plot([100 * score.low, 100 * score.high], [y, y], color=color, linewidth=3, alpha=0.55)
        scores.plot(100 * score.value, y, "o", color=color, markersize=7)
        text = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
        scores.annotate(f"{100 * score.value:.1f}", (100 * score.value, y), (0, 6), **text)
    scores.set_yticks(range(len(bars)), list(bars))
    scores.set_ylim(len(bars) - 0.5, -0.8)
    scores.grid(visible=False)
    scores.grid(visible=True, axis="x")
    label_axes(scores, "", "Recall@1 on 42 unseen species, %")
    return figure


@report_style
def retrieval_strip(results, queries=5, neighbors=6):
    """Draw random queries with their nearest neighbors, untrained encoder and model side by side."""
    retrieval = results.retrieval(results.embeddings)
    rows = choose_rows(rank_queries(retrieval), queries)["random"]
    baseline = find_neighbors(results.retrieval(results.baseline_embeddings), rows, neighbors)
    blocks = {"Untrained": baseline, "Trained": find_neighbors(retrieval, rows, neighbors)}
    tile, gap, head, below = 0.72, 0.24, 0.3, 0.19  # inches
    starts = {name: tile + gap + i * (neighbors * tile + gap) for i, name in enumerate(blocks)}
    width, height = max(starts.values()) + neighbors * tile, head + max(1, len(rows)) * (tile + below)
    figure = Figure(figsize=(width, height), facecolor="white")
    for name, x in {"Query": 0.0, **starts}.items():
        figure.text((x + 0.02) / width, 1 - 0.18 / height, name, weight="bold", va="center")
    paths, labels = results.table["path"].tolist(), results.table["label"].tolist()
    for i, row in enumerate(rows):
        y = height - head - i * (tile + below) - tile
        label, position = shorten(labels[row], 13), (tile / 2 / width, (y - below / 2) / height)
        figure.text(*position, label, size=7, ha="center", va="center", parse_math=False)
        draw_tile(figure, (0, y, tile), paths[row])
        for name, x in starts.items():
            for j, (neighbor, correct) in enumerate(blocks[name][i].neighbors):
                draw_tile(figure, (x + j * tile, y, tile), paths[neighbor], correct)
    return figure


def draw_tile(figure, place, path, correct=None):
    """Draw an image into a square of the figure, in inches, with a mark if it is a neighbor."""
    width, height = figure.get_size_inches()
    x, y, side = place
    axes = figure.add_axes((x / width, y / height, side / width, side / height))
    axes.axis("off")
    image = load_thumbnail(path, 192) or Image.new("RGB", (8, 8), COLORS["rule"])
    axes.imshow(np.asarray(image), extent=(0.06, 0.94, 0.06, 0.94), interpolation="lanczos")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    color = COLORS["ink" if correct is None else "green" if correct else "red"]
    axes.add_patch(Rectangle((0.04, 0.04), 0.92, 0.92, fill=False, edgecolor=color, linewidth=1.6))
    if correct is not None:
        axes.add_patch(Rectangle((0.72, 0.04), 0.24, 0.24, facecolor=color, edgecolor="none"))
        for stroke in CHECK_MARK if correct else CROSS_MARK:
            axes.plot(*stroke, color="white", linewidth=1.3)


def save(figure, name):
    (DOCS / "images").mkdir(exist_ok=True)
    figure.savefig(DOCS / "images" / name, dpi=130)


save(birds_figure(), "birds.png")
save(spread_figure(), "spread.png")
save(weight_figure({"frozen-icons": "Frozen encoder", "icons": "Whole network"}), "weight.png")
save(size_figure(), "size.png")
if len(sys.argv) > 1:
    save(retrieval_strip(evaluate_run(RunFolder(sys.argv[1]))), "retrieval.png")

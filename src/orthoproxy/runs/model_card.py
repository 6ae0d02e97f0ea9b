"""The model card that lies beside a model's weights."""

from __future__ import annotations

from typing import Any

import yaml

from orthoproxy.runs.config import Config
from orthoproxy.evaluation import Evaluation, NoMatchCalibration
from orthoproxy.core.safe_parsing import parse_yaml

UNKNOWN = "unknown"  # what the hub calls a licence that nobody has named
_TEMPLATE = """\
---
{header}---
# {title}

An image encoder for retrieval: images of one kind get embeddings that lie close together.

- Backbone: timm `{backbone}`, {start} `{weights}`
- Image: {view}
- Embedding: {dim}, unit length; compare by cosine
- Trained on: {data} with {loss}
- Recipe: {recipe}
- Licence: {license}
- Made by: orthoproxy {version}

{scores}{no_match}{exported}## Use

```python
import orthoproxy

model = orthoproxy.load("THIS FOLDER")
embeddings = model.embed(["one.jpg", "another.jpg"])
```
"""


def model_card(
    config: Config, evaluation: Evaluation | None, license: str = UNKNOWN, no_match: str = "", exported: str = ""
) -> str:
    """Write the card's text.

    Parameters
    ----------
    config
        Of the run.
    evaluation
        Scores on unseen classes; None where there are none.
    license
        Of the model, as the hub names licences, for example ``apache-2.0``.
    no_match
        What there is to say about when a search has found nothing; see `no_match_words`.
    exported
        What there is to say about files made from the model.

    Returns
    -------
    str
        Markdown with the header that model hubs read.

    Examples
    --------
    >>> card = model_card(Config(), None, license="mit")
    >>> [line for line in card.splitlines() if line.startswith(("license", "# "))]
    ['license: mit', '# deit_small_patch16_224 for icons']
    """
    so, training = config.loss.orthogonality, config.training
    term = f"Soft Orthogonality ({so.scaling})" if so.kind == "soft" else f"the regulariser {so.kind}"
    regulariser = f" + {so.weight:g} * {term}" if so.weight else ""
    dim, size, resize = config.encoder.embedding_dim, config.encoder.image_size, config.data.resize
    title = f"{config.encoder.name} for {config.data.name}"
    cut = f"{size} x {size} pixels, the centre of the image after resizing its shorter side"
    return _TEMPLATE.format(
        header=yaml.safe_dump(_header(title, config, evaluation, license), sort_keys=False, allow_unicode=True),
        title=title,
        backbone=config.encoder.name,
        weights=config.encoder.weights,
        start="frozen, as it came from" if config.encoder.freeze else "started from",
        view=f"{size} x {size} pixels, all of the image" if resize == "squash" else cut,
        dim=f"{dim} numbers" if dim else "the backbone's pooled features",
        data=config.data.name,
        loss=config.loss.name + regulariser,
        recipe=f"{training.epochs} epochs of batches of {training.batch_size}, seed {training.seed}",
        license=license,
        version=config.environment.get("orthoproxy", ""),
        scores=_scores(evaluation) if evaluation else "",
        no_match=f"{no_match}\n\n" if no_match else "",
        exported=f"{exported}\n\n" if exported else "",
    )


def no_match_words(matching: NoMatchCalibration, false_match_rate: float) -> str:
    """Say in a sentence which threshold a search can take, and how sure that is.

    Parameters
    ----------
    matching
        Of the validation classes, which were not trained on.
    false_match_rate
        The rate wanted, as a fraction.

    Returns
    -------
    str
        Two sentences; none where there are too few queries for the rate.

    Examples
    --------
    >>> import numpy as np
    >>> matching = NoMatchCalibration(np.array([0.9, 0.7] * 5), np.array([0.2, 0.5] * 5), np.arange(10), gallery=10)
    >>> no_match_words(matching, 0.1)[:71]
    'No match: below a similarity of 0.500. On 10 validation classes (10 que'
    """
    threshold = matching.threshold(false_match_rate)
    if threshold is None:
        return ""
    classes, queries = len(set(matching.classes.tolist())), len(matching.other)
    return (
        f"No match: below a similarity of {threshold:.3f}. On {classes:,} validation classes ({queries:,} queries, "
        f"{matching.gallery:,} images) {matching.false_match_rate(threshold)} % of the queries match if their class is "
        f"not there, {matching.match_rate(threshold)} % match their own class if it is."
    )


def license_of(card: str) -> str:
    """Read the licence from a card's header.

    Parameters
    ----------
    card
        Its text.

    Returns
    -------
    str
        ``unknown`` where it names none.

    Examples
    --------
    >>> license_of(model_card(Config(), None, license="mit")), license_of("# A model")
    ('mit', 'unknown')
    """
    try:
        header: Any = parse_yaml(card.split("---\n")[1]) if card.startswith("---\n") else None
    except (ValueError, yaml.YAMLError):
        header = None
    named = header.get("license") if isinstance(header, dict) else None
    return named if isinstance(named, str) else UNKNOWN


def untrained_card(config: Config) -> str:
    """Write the card of the encoder that a run is compared with.

    Parameters
    ----------
    config
        Of the run.

    Returns
    -------
    str
        Markdown.

    Examples
    --------
    >>> untrained_card(Config()).splitlines()[0]
    '# deit_small_patch16_224 as it was before training'
    """
    encoder = config.encoder
    return (
        f"# {encoder.name} as it was before training\n\nThe backbone with its starting weights (`{encoder.weights}`), "
        "pooled features at full width, unit length: what the trained model is compared with.\n"
    )


def _header(title: str, config: Config, evaluation: Evaluation | None, license: str) -> dict[str, Any]:
    """What model hubs read: the library, the licence, and the scores in the hub's own form."""
    header: dict[str, Any] = {
        "library_name": "orthoproxy",
        "license": license,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["metric-learning", "image-retrieval"],
    }
    if evaluation is not None:
        values = [
            {"type": name, "name": name, "value": round(estimate.value, 4)}
            for name, estimate in evaluation.model.items()
        ]
        task = {"type": "image-feature-extraction", "name": "Image retrieval, classes not trained on"}
        data = {"type": config.data.name, "name": config.data.name}
        header["metrics"] = list(evaluation.model)
        header["model-index"] = [
            {"name": title, "results": [{"task": task, "dataset": data, "metrics": values}]},
        ]
    return header


def _scores(evaluation: Evaluation) -> str:
    lines = [
        f"Scores on {evaluation.classes} classes not trained on, {evaluation.queries} queries, percent with interval:",
        "",
        "| metric | trained | untrained |",
        "|---|---|---|",
    ]
    for metric, estimate in evaluation.model.items():
        untrained = evaluation.baseline[metric] if evaluation.baseline else "-"
        lines.append(f"| {metric} | {estimate} | {untrained} |")
    return "\n".join([*lines, "", ""])

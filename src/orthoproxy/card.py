"""The model card that lies beside a model's weights."""

from __future__ import annotations

from orthoproxy.config import Config
from orthoproxy.evaluation import Evaluation

_TEMPLATE = """\
---
library_name: orthoproxy
pipeline_tag: image-feature-extraction
tags: [metric-learning, image-retrieval]
---
# {title}

An image encoder for retrieval: images of one kind get embeddings that lie close together.

- Backbone: timm `{backbone}`, started from `{weights}`
- Embedding: {dim}, unit length; compare by cosine
- Trained on: {data} with {loss}
- Made by: orthoproxy {version}

{scores}
## Use

```python
import orthoproxy

model = orthoproxy.load("THIS FOLDER")
embeddings = model.embed(["one.jpg", "another.jpg"])
```
"""


def model_card(config: Config, evaluation: Evaluation | None) -> str:
    """Write the card's text.

    Parameters
    ----------
    config
        Of the run.
    evaluation
        Scores on unseen classes; None where there are none.

    Returns
    -------
    str
        Markdown with the header that model hubs read.

    Examples
    --------
    >>> model_card(Config(), None).splitlines()[5]
    '# deit_small_patch16_224 for icons'
    """
    so = config.loss.orthogonality
    regulariser = f" + {so.weight:g} * Soft Orthogonality ({so.scaling})" if so.weight else ""
    dim = config.encoder.embedding_dim
    return _TEMPLATE.format(
        title=f"{config.encoder.name} for {config.data.name}",
        backbone=config.encoder.name,
        weights=config.encoder.weights,
        dim=f"{dim} numbers" if dim else "the backbone's pooled features",
        data=config.data.name,
        loss=config.loss.name + regulariser,
        version=config.environment.get("orthoproxy", ""),
        scores=_scores(evaluation) if evaluation else "",
    )


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


def _scores(evaluation: Evaluation) -> str:
    lines = [
        f"Scores on {evaluation.classes} classes not trained on, {evaluation.queries} queries, percent with interval:",
        "",
        "| metric | trained | untrained |",
        "|---|---|---|",
    ]
    for metric, estimate in evaluation.trained.items():
        untrained = evaluation.untrained[metric] if evaluation.untrained else "-"
        lines.append(f"| {metric} | {estimate} | {untrained} |")
    return "\n".join([*lines, "", ""])

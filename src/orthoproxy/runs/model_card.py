"""The model card beside a model's weights."""

from __future__ import annotations

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from orthoproxy.core.safe_parsing import parse_yaml
from orthoproxy.evaluation import Evaluation, NoMatchCalibration
from orthoproxy.runs.config import Config

UNKNOWN = "unknown"  # the hub's name for a license that is not specified
TASK = "image-feature-extraction"
TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

An image encoder for retrieval: images of the same class have similar embeddings.

- Backbone: timm `{{ config.encoder.name }}`, {{ training_mode }} from `{{ config.encoder.init_from }}`
- Input: {{ config.encoder.image_size }} x {{ config.encoder.image_size }} pixels, {{ view }}
- Embedding: {{ dim }}, unit length; compare by cosine
- Trained on: {{ config.data.name }} with {{ loss }}
{% if config.environment.merged %}- {{ config.environment.merged }}
{% endif %}- Recipe: {{ config.training.epochs }} epochs, batch size {{ config.sampler.batch_size }}, \
seed {{ config.training.seed }}
- License: {{ license }}
- Software: orthoproxy {{ config.environment.orthoproxy }}

{{ body }}

## Use

```python
import orthoproxy

model = orthoproxy.load("THIS FOLDER")
embeddings = model.embed(["one.jpg", "another.jpg"])
```
"""


def model_card(config: Config, evaluation: Evaluation | None, license: str, no_match: str) -> str:
    """Return the model card as Markdown; `license` is a hub identifier such as ``apache-2.0``."""
    title, regularizer = f"{config.encoder.name} for {config.data.name}", config.loss.proxy_regularizer
    scores, kind = (evaluation.model, evaluation.kind) if evaluation else ({}, "")
    results = [
        EvalResult(TASK, config.data.name, config.data.name, name, round(score.value, 4), f"Retrieval of {kind}")
        for name, score in scores.items()
    ]
    header = ModelCardData(
        library_name="orthoproxy",
        license=license,
        pipeline_tag=TASK,
        tags=["metric-learning", "image-retrieval"],
        model_name=title if results else None,
        eval_results=results or None,
        metrics=list(scores) or None,
    )
    term = "Soft Orthogonality" if regularizer.name == "soft_orthogonality" else f"regularizer {regularizer.name}"
    card = ModelCard.from_template(
        header,
        template_str=TEMPLATE,
        title=title,
        config=config,
        training_mode="frozen," if config.encoder.freeze else "fine-tuned",
        view="the whole image" if config.data.resize == "stretch" else "center crop after resizing the shorter side",
        dim=f"{config.encoder.embedding_dim}-dimensional" if config.encoder.embedding_dim else "pooled features",
        loss=config.loss.name + (f" + {regularizer.weight:g} * {term}" if regularizer.weight else ""),
        license=license,
        body="\n\n".join(part for part in (_score_table(evaluation), no_match) if part),
    )
    return card.content


def _score_table(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return ""
    untrained = evaluation.baseline or dict.fromkeys(evaluation.model, "-")
    rows = [f"| {name} | {score} | {untrained[name]} |" for name, score in evaluation.model.items()]
    head = f"Scores on {evaluation.classes} {evaluation.kind}, {evaluation.queries} queries, in percent with intervals:"
    return "\n".join([head, "", "| metric | trained | untrained |", "|---|---|---|", *rows])


def no_match_words(calibration: NoMatchCalibration, false_match_rate: float) -> str:
    """Describe the threshold for a false-match rate; empty if there are too few queries for the rate."""
    threshold = calibration.threshold(false_match_rate)
    if threshold is None:
        return ""
    classes, queries = len(set(calibration.classes.tolist())), len(calibration.other)
    return (
        f"No match: below a similarity of {threshold:.3f}. On {classes:,} validation classes ({queries:,} queries, "
        f"gallery of {calibration.gallery:,} images), the false-match rate is "
        f"{calibration.false_match_rate(threshold)} %, the match rate {calibration.match_rate(threshold)} %."
    )


def license_of(card: str) -> str:
    """Read the license from a card's header; ``unknown`` if it names none."""
    try:  # not by ModelCard, whose YAML has no limits
        header = parse_yaml(card.split("---\n")[1]) if card.startswith("---\n") else None
    except (ValueError, yaml.YAMLError):
        header = None
    license = header.get("license") if isinstance(header, dict) else None
    return license if isinstance(license, str) else UNKNOWN


def baseline_card(config: Config) -> str:
    """Return the card of the untrained encoder that a run is compared with."""
    encoder = config.encoder
    return (
        f"# {encoder.name} before training\n\nThe backbone with its pretrained weights (`{encoder.init_from}`): pooled "
        "features at full width, unit length. The trained model is compared with it.\n"
    )

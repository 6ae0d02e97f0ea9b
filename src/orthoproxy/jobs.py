"""What the verbs of the command line do: train, evaluate, report."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric, seed_everything
from lightning_fabric.loggers.logger import Logger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from orthoproxy import builders
from orthoproxy.builders import split_table
from orthoproxy.card import license_of, model_card, no_match_words, untrained_card
from orthoproxy.config import Config, with_absolute_paths
from orthoproxy.data import Picture, find_unreadable, leave_out, only
from orthoproxy.embedder import Embedder, write_threshold
from orthoproxy.errors import InputError
from orthoproxy.evaluation import Evaluation, Matching, Scoring, matching_of, mean_scores, require_scorable, score
from orthoproxy.losses import Objective
from orthoproxy.models import Encoder, load_weights
from orthoproxy.processes import (
    agreed,
    collect_rows,
    copy_from_main,
    from_main,
    gather_objects,
    is_first_of_machine,
    is_main,
    meet,
    own_share,
    process_count,
    process_index,
    rows_in_order,
    shares,
)
from orthoproxy.reports import RunResults, render_report
from orthoproxy.run import Run, write_whole
from orthoproxy.training import Checkpoints, class_means, fit, make_optimizer, principal_weight

FEW_CLASSES = 10  # fewer validation classes make the choice of a checkpoint unreliable
FALSE_MATCH_RATE = 0.01  # of queries whose class is not there, unless an export chose another


@contextmanager
def suggesting_to_skip() -> Iterator[None]:
    """Add to the error about an image that cannot be read that it can be left out.

    Examples
    --------
    >>> with suggesting_to_skip():
    ...     raise InputError("cannot read the image 1.png: empty; replace it")
    Traceback (most recent call last):
    ...
    orthoproxy.errors.InputError: cannot read the image 1.png: empty; replace it, or set data.on_error to skip
    """
    try:
        yield
    except InputError as error:
        # raised in a loader's worker, the message comes back inside the text of a traceback
        message = str(error).rpartition("InputError: ")[2].strip()
        if not message.startswith("cannot read the image"):
            raise
        raise InputError(f"{message}, or set data.on_error to skip") from error


@suggesting_to_skip()
def train(config: Config, out: str | Path | None = None, resume: bool = False) -> Run:
    """Train, judge on unseen classes beside the untrained encoder, and write the run folder.

    Started by torchrun, its processes train together; each calls this, and the main one writes and prints.

    Parameters
    ----------
    config
        See `config.Config`; `read_config` makes one from a recipe.
    out
        The run folder; None for ``runs/`` and the name of the data.
    resume
        Go on from the folder's last checkpoint, if it has one; a finished run is returned as it is.

    Returns
    -------
    Run
        The folder, with model, scores and report.

    Raises
    ------
    InputError
        If something in the configuration or the data cannot be used, or `out` holds a run already.
    Interrupted
        After Ctrl-C, with the run saved.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from orthoproxy import config as c
    >>> root = Path(tempfile.mkdtemp())
    >>> for colour in ["red", "green", "blue", "gold", "pink"]:
    ...     (root / "images" / colour).mkdir(parents=True)
    ...     for shade in range(3):
    ...         Image.new("RGB", (32 + shade, 32), colour).save(root / "images" / colour / f"{shade}.png")
    >>> run = train(
    ...     Config(
    ...         data=c.Data(name="folder", root=str(root / "images"), test_fraction=0.4, workers=0),
    ...         encoder=c.Encoder(name="deit_tiny_patch16_224", weights="none", embedding_dim=8, image_size=32),
    ...         training=c.Training(epochs=1, batch_size=4, precision="32-true"),
    ...     ),
    ...     root / "run",
    ... )
    >>> sorted(path.name for path in run.folder.iterdir() if path.is_file())
    ['config.yaml', 'evaluation.json', 'metrics.jsonl', 'report.html']
    """
    config = with_absolute_paths(config.check())
    run = Run(out or Path("runs") / config.data.name)
    run.check(config, resume)
    if run.finished:
        return run
    fabric = builders.make_fabric(config.training, run.folder)
    meet(fabric.device)
    fabric.launch()
    table = _split_table(config)
    unreadable = _unreadable(run, config, table)
    with agreed():
        if unreadable is not None:
            table = leave_out(table, unreadable)
        _check_images(config, table)
    seed_everything(config.training.seed, verbose=False)

    # what is trained
    images = only(table, "train")
    classes = sorted(set(images["label"]))
    number = {label: position for position, label in enumerate(classes)}
    paths, labels = images["path"].tolist(), [number[label] for label in images["label"]]
    with agreed():
        encoder = builders.make_encoder(config).to(fabric.device)
        objective = builders.make_objective(config, len(classes), encoder.embedding_dim).to(fabric.device)
    rates = config.training.rates
    optimizer = make_optimizer(
        encoder, objective, rates.backbone, rates.projection, rates.proxies, config.training.weight_decay
    )

    # where it starts: where it was left, or from the data
    checkpoints = Checkpoints(run.checkpoints, encoder, objective, optimizer)
    if from_main(run.has_state):
        position = checkpoints.load("last")
        if is_main():
            run.drop_records_after(position.step)
    else:
        position = None
        with agreed():
            if is_main():
                load_weights(encoder, config.encoder.weights)
                run.start(config, unreadable)
        _require_common(run)
        copy_from_main(encoder.state_dict().values())
        with agreed():
            kept = builders.keep_images(config, paths, evaluation=True)
        _start(run, encoder, objective, kept, labels, classes)
        if objective.sharded is None:
            copy_from_main(objective.state_dict().values())
        if process_index():  # drop-out and the like draw differently in each process
            seed_everything(config.training.seed + process_index(), verbose=False)
    _warn_about_batchnorm(encoder)

    # the loop, and the choice of the checkpoint
    loader, sampler = builders.make_loader(config, paths, labels)
    chosen_on = only(table, config.training.select_on)
    with _finalized(fabric.loggers):
        fit(
            fabric,
            encoder,
            objective,
            optimizer,
            loader,
            sampler,
            builders.make_plan(config.training, config.encoder.freeze_epochs, len(sampler)),
            checkpoints,
            log=lambda record: _log(run, fabric, record),
            validate=(lambda: _validate(config, encoder, chosen_on)) if len(chosen_on) else None,
            position=position,
        )
    if from_main(checkpoints.path("best").is_file()):
        position = checkpoints.load("best", model_only=True)
        _say(f"kept epoch {position.best_epoch}, the best on {config.training.select_on} classes")

    # the result
    proxies = _all_class_vectors(objective)
    with agreed():
        if is_main():
            Embedder(encoder, config.data.resize, classes, proxies).save(run.folder / "model")
    judge(run, fabric.device)
    return run


def judge(run: Run, device: str | torch.device = "cpu") -> None:
    """Score a trained run on its test classes, and write evaluation.json, the model card and the report.

    Parameters
    ----------
    run
        With a model.
    device
        Where to compute.

    Raises
    ------
    InputError
        If the run has no model yet, or its images cannot be read.

    Examples
    --------
    >>> judge(Run("runs/nowhere"))
    Traceback (most recent call last):
    ...
    orthoproxy.errors.InputError: no run in runs/nowhere: config.yaml is not there
    """
    results = results_of(run, device)
    with agreed():  # the others wait, and can read the scores afterwards
        if is_main():
            _write_results(run, results)


def _write_results(run: Run, results: RunResults) -> None:
    config = run.config
    if results.evaluation is not None:
        labels = {"chosen_on": config.training.select_on, "notes": results.notes}
        scores = json.dumps({**results.evaluation.to_dict(), **labels}, indent=2)
        write_whole(run.folder / "evaluation.json", scores + "\n")
    _write_card(run, results)
    write_whole(run.report, render_report(results))


def _write_card(run: Run, results: RunResults) -> None:
    """Write the model card and the threshold; the licence and the false-match rate stay as an export chose them."""
    folder = run.folder / "model"
    model = Embedder.load(folder, with_proxies=False)
    rate = model.false_match_rate or FALSE_MATCH_RATE
    threshold = results.matching and results.matching.threshold(rate)
    words = no_match_words(results.matching, rate) if results.matching else ""
    write_threshold(folder, threshold, rate)
    card = model_card(run.config, results.evaluation, license_of(model.card), words)
    write_whole(folder / "README.md", card)


def results_of(run: Run, device: str | torch.device = "cpu") -> RunResults:
    """Embed a run's test images with its model and with the untrained encoder, and score both.

    Parameters
    ----------
    run, device
        As in `judge`.

    Returns
    -------
    RunResults
        All that the report shows; of several processes, the main one has the proxies.

    Raises
    ------
    InputError
        As from `judge`.

    Examples
    --------
    >>> results_of(Run("runs/nowhere"))
    Traceback (most recent call last):
    ...
    orthoproxy.errors.InputError: no run in runs/nowhere: config.yaml is not there
    """
    start, config = time.monotonic(), run.config
    model = Embedder.load(run.folder, device, with_proxies=is_main())
    untrained = Embedder.load(run.folder / "untrained", device)
    table, unreadable = _split_table(config), run.unreadable
    if unreadable is not None:
        table = leave_out(table, unreadable)
    judged = only(table, "test")
    paths, workers = judged["path"].tolist(), config.data.workers
    ours = model.embed_together(paths, workers=workers, what="embed, trained")
    theirs = untrained.embed_together(paths, workers=workers, what="embed, untrained")
    scoring = replace(builders.make_scoring(config.evaluation), device=str(device), shared=True)
    evaluation = score(ours, theirs, judged, scoring, start) if len(judged) else None
    matching = _matching(model, only(table, "validation"), scoring, workers)
    return RunResults(
        name=run.folder.name,
        evaluation=evaluation,
        table=judged,
        trained=ours,
        untrained=theirs,
        log=run.records(),
        proxies=None if model.proxies is None else model.proxies.cpu().numpy(),
        classes=model.classes,
        config=(run.folder / "config.yaml").read_text(encoding="utf-8"),
        machine=config.environment,
        notes=_notes(
            config,
            held_out=len(set(only(table, "validation")["label"])),
            unreadable=0 if unreadable is None else len(unreadable),
            evaluation=evaluation,
        ),
        matching=matching,
    )


def _matching(model: Embedder, table: pd.DataFrame, scoring: Scoring, workers: int) -> Matching | None:
    """Compare the images of the validation classes, if there are any, in the main process."""
    embeddings = model.embed_together(table["path"].tolist(), workers=workers, what="embed, validation")
    return matching_of(embeddings, table, scoring) if is_main() and len(table) else None


def _unreadable(run: Run, config: Config, table: pd.DataFrame) -> pd.DataFrame | None:
    """The images to leave out, where that is wanted: as the run began, or looked for now."""
    if config.data.on_error == "raise":
        return None
    unreadable = run.unreadable if from_main(run.has_state) else _find_unreadable(config, table)
    if unreadable is not None and len(unreadable):
        first = f"for example {unreadable['path'][0]}: {unreadable['reason'][0]}"
        _say(f"{config.data.name}: unreadable images left out: {len(unreadable)}, {first}")
    return unreadable


def _find_unreadable(config: Config, table: pd.DataFrame) -> pd.DataFrame:
    """Look for them with all processes."""
    with agreed():
        found = find_unreadable(table.iloc[own_share(shares(len(table)))], config.data.workers)
    return pd.concat(gather_objects(found), ignore_index=True)


def _split_table(config: Config) -> pd.DataFrame:
    """Read the table; of the processes of a machine one comes first, as icons are rendered on the way."""
    table = None
    with agreed():
        if is_first_of_machine():
            table = split_table(config)
    with agreed():
        return split_table(config) if table is None else table


def _say(line: str) -> None:
    if is_main():
        print(line, file=sys.stderr)


def _check_images(config: Config, table: pd.DataFrame) -> None:
    """Find out before the training what would spoil the judgement after it."""
    counts = {name: only(table, name) for name in ("train", "validation", "test")}
    described = [f"{name} {len(set(x['label']))} classes, {len(x)} images" for name, x in counts.items() if len(x)]
    _say(f"{config.data.name}: {'; '.join(described)}")
    sizes = table["label"].value_counts()
    if single := sorted(sizes.index[sizes == 1]):
        _say(f"note: classes with one image only: {len(single)}, for example {single[0]!r}")
    missing = [path for path in table["path"] if not Path(path).is_file()]
    if missing:
        raise InputError(
            f"data: no file {missing[0]} ({len(missing)} such); check data.root and data.path, "
            "or set data.on_error to skip"
        )
    judged = {config.training.select_on, "test"} - {"none"}
    for name in judged:
        if len(counts[name]):
            require_scorable(counts[name], builders.make_scoring(config.evaluation), f"{name} classes")
    if config.encoder.weights.startswith("run:"):
        earlier = set(Embedder.load(config.encoder.weights.removeprefix("run:"), with_proxies=False).classes)
        known = sorted(earlier & set().union(*(counts[name]["label"] for name in judged)))
        if known:
            raise InputError(
                f"encoder.weights: that run was trained on {known[0]!r} ({len(known)} such classes), which are to be "
                "judged as unseen here;\ngive them to train (column split of a CSV file), or start from other weights"
            )


def _start(
    run: Run,
    encoder: Encoder,
    objective: Objective,
    images: Sequence[str | Picture],
    labels: list[int],
    classes: list[str],
) -> None:
    """Keep the untrained encoder, and set projection and proxies from the training images.

    What another run brought along (``run:`` weights) stays.
    """
    config, device = run.config, encoder.mean.device
    options, workers, weights = config.initialisation, config.data.workers, config.encoder.weights
    untrained = Embedder(builders.make_untrained(encoder), config.data.resize, device=device)
    with agreed():
        if is_main():
            untrained.save(run.folder / "untrained", untrained_card(config))
    continued = weights.startswith("run:")
    if options.projection == "principal" and isinstance(encoder.projection, nn.Linear) and not continued:
        features = untrained.embed_together(images, workers=workers, what="principal directions")
        with agreed():
            weight = principal_weight(torch.from_numpy(features), encoder.embedding_dim, options.whitening)
        encoder.projection.weight.data.copy_(weight)
        copy_from_main([encoder.projection.weight])
    if options.proxies == "class_means" and objective.class_vectors() is not None:
        embedder = Embedder(encoder, config.data.resize, device=device)
        if objective.sharded is not None:
            classes = classes[objective.sharded.classes.start : objective.sharded.classes.stop]
            means = _own_class_means(embedder, images, labels, objective.sharded.classes, workers)
        else:
            embeddings = embedder.embed_together(images, workers=workers, what="class means")
            means = class_means(torch.from_numpy(embeddings), torch.tensor(labels), len(classes))
        objective.set_class_vectors(_with_known_proxies(weights, means, classes) if continued else means)


def _own_class_means(
    embedder: Embedder, images: Sequence[str | Picture], labels: list[int], classes: range, workers: int
) -> Tensor:
    """The means of the classes that this process keeps; no process holds all embeddings."""
    sizes = shares(len(images), unit=128)
    with agreed():
        own = embedder.embed(images[own_share(sizes)], 128, workers, "class means")
    sums = torch.zeros(len(classes), own.shape[1])
    for first, rows in rows_in_order(torch.from_numpy(own), sizes):
        numbers = torch.tensor(labels[first : first + len(rows)]) - classes.start
        here = (numbers >= 0) & (numbers < len(classes))
        sums.index_add_(0, numbers[here], rows[here])
    return F.normalize(sums, dim=1)


def _all_class_vectors(objective: Objective) -> Tensor | None:
    """The class vectors to be saved, in the main process."""
    vectors = objective.class_vectors()
    if vectors is None or objective.sharded is None:
        return None if vectors is None else vectors.detach()
    return collect_rows(vectors.detach(), objective.sharded.sizes)


def _require_common(run: Run) -> None:
    """Make sure that all processes see the folder which the main one has just made."""
    with agreed():
        if not run.exists:
            raise InputError(
                f"--out: {socket.gethostname()} does not see {run.folder.resolve()}, which the main process has made; "
                "give a folder that all machines share"
            )


def _warn_about_batchnorm(encoder: Encoder) -> None:
    live = any(isinstance(module, _BatchNorm) and module.training for module in encoder.train().modules())
    if live and process_count() > 1:
        _say(
            f"note: batch-norm layers take their statistics from each of the {process_count()} processes' own images, "
            "so the result depends on the number of processes; encoder.freeze_batchnorm true avoids it"
        )


def _with_known_proxies(weights: str, means: Tensor, classes: list[str]) -> Tensor:
    """Replace the means of classes that the earlier run knew by its proxies."""
    earlier = Embedder.load(weights.removeprefix("run:"))
    if earlier.proxies is not None:
        rows = {label: row for row, label in enumerate(earlier.classes)}
        known = [number for number, label in enumerate(classes) if label in rows]
        means[known] = earlier.proxies[[rows[classes[number]] for number in known]].to(means.dtype)
    return means


def _validate(config: Config, encoder: Encoder, table: pd.DataFrame) -> dict[str, float]:
    embedder = Embedder(encoder, config.data.resize, device=encoder.mean.device)
    images = builders.keep_images(config, table["path"].tolist(), evaluation=True)
    embeddings = embedder.embed_together(images, workers=config.data.workers)
    device = str(encoder.mean.device)
    scoring = replace(builders.make_scoring(config.evaluation), nmi=False, device=device, shared=True)
    return from_main(mean_scores(embeddings, table, scoring))  # to the last bit, or the processes would part ways


def _log(run: Run, fabric: Fabric, record: dict[str, Any]) -> None:
    run.log(record)
    fabric.log_dict({name: value for name, value in record.items() if name != "step"}, step=record["step"])


@contextmanager
def _finalized(trackers: Sequence[Logger]) -> Iterator[None]:
    """Tell trackers how it ended."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for tracker in trackers:
            tracker.finalize(status)


def _notes(config: Config, held_out: int, unreadable: int, evaluation: Evaluation | None) -> list[str]:
    """Say what a reader of the scores must know, from the numbers of validation classes and of images left out."""
    notes = []
    if unreadable:
        images = "1 unreadable image was" if unreadable == 1 else f"{unreadable} unreadable images were"
        notes.append(f"{images} left out; skipped.csv lists {'it' if unreadable == 1 else 'them'}.")
    if config.training.select_on == "test":
        notes.append("The checkpoint was chosen on the test classes themselves, so these scores are too high.")
    elif config.training.select_on == "none" or held_out == 0:
        notes.append("The last checkpoint was kept; none was chosen on held-out classes.")
    elif held_out < FEW_CLASSES:
        notes.append(f"Only {held_out} classes chose the checkpoint: the choice is unreliable.")
    difference = evaluation.difference if evaluation else None
    worse = [metric for metric, change in (difference or {}).items() if change.high < 0]
    if worse:
        notes.append(f"Training made retrieval worse than the untrained encoder's in {', '.join(worse)}.")
    return notes

"""The configurations of a study: what each of its cells is trained with, and on how many images."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import is_file
from orthoproxy.data import BatchSampler, select_split
from orthoproxy.runs import build as builders
from orthoproxy.runs.config import Augmentation, Config, flat
from orthoproxy.runs.recipes import config_of, options_parser, parse
from orthoproxy.runs.run_folder import WITHOUT_EFFECT
from orthoproxy.studies.plan import Cell, Study

# what may differ between the machines that share a study
OF_THE_MACHINE = {"data.root", "data.path", "data.cache", "training.accelerator", "training.loggers"} | WITHOUT_EFFECT


def config_of_cell(study: Study, cell: Cell) -> Config:
    """Put together a cell's configuration: the base recipe, the method's part of one, and the options over them.

    Parameters
    ----------
    study, cell
        Of the study's file.

    Returns
    -------
    Config
        Checked. Its validation classes are held out, since settings are chosen by them.

    Raises
    ------
    InputError
        If a recipe cannot be read, an option does not exist or has a value that cannot be, or the study could not be
        scored.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> from pathlib import Path
    >>> study = Study("so", {"on": Method()}, "on", base=Path("nowhere.yaml"), path=Path("so.yaml"))
    >>> config_of_cell(study, Cell("on", {}, 0))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: so.yaml: base: no recipe nowhere.yaml
    """
    method = study.methods[cell.method]
    if not is_file(study.base):
        raise InputError(f"{study.path}: base: no recipe {study.base}")
    recipes = [study.base] if method.recipe is None else [study.base, method.recipe]
    options = {"training.select_on": "validation", **study.options(cell), "training.seed": 0}
    words = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()]
    try:
        config = _config(*[(str(recipe), recipe.stat().st_mtime_ns) for recipe in recipes], options=tuple(words))
    except InputError as error:
        raise InputError(f"{study.path}: {cell.name}: {error}") from error
    if config.training.select_on != "validation":
        raise InputError(
            f"{study.path}: training.select_on: {config.training.select_on}; a study chooses on validation classes, "
            "leave it out"
        )
    if 1 not in config.evaluation.recall_at:
        raise InputError(f"{study.path}: evaluation.recall_at: a study looks at Recall@1; add 1")
    return replace(config, training=replace(config.training, seed=cell.seed))


@cache
def _config(*recipes: tuple[str, int], options: tuple[str, ...]) -> Config:
    """Parse what many cells share once, unless a recipe was changed meanwhile; to be copied before it is changed."""
    return config_of(parse(options_parser(), [*(x for path, _ in recipes for x in ("--config", path)), *options]))


def check_classes(study: Study) -> None:
    """Read the tables of images, and see that all cells can be scored, and on the same classes.

    Parameters
    ----------
    study
        Of which any option may change the images.

    Raises
    ------
    InputError
        If a table cannot be read, there are no validation or test classes, the test classes are not the same for all
        cells, or the validation classes not for all settings of a method.

    Examples
    --------
    Done by ``orthoproxy study`` before the first run, see docs/guide/studies.md.
    """
    known: dict[str, dict[str, list[str]]] = {}
    first: dict[tuple[str, str], tuple[Cell, list[str]]] = {}
    for cell in study.first_cells:
        config = config_of_cell(study, cell)
        key = repr(replace(config.data, augmentation=Augmentation()))
        if key not in known:
            table = builders.split_table(config)
            known[key] = {part: select_split(table, part)["path"].tolist() for part in ("validation", "test")}
        for part, images in known[key].items():
            if not images:
                raise InputError(
                    f"{study.path}: {cell.name}: no {part} classes, which a study needs; see data.{part}_fraction"
                )
            among = "all cells" if part == "test" else cell.method
            before, same = first.setdefault((part, among), (cell, images))
            if images != same:
                raise InputError(
                    f"{study.path}: {before.name} and {cell.name} would be scored on different {part} classes; "
                    "leave the options that decide on them the same"
                )


def changed_options(config: Config) -> dict[str, Any]:
    """List what a configuration changes of the defaults, but for what differs between machines.

    Parameters
    ----------
    config
        Of a cell.

    Returns
    -------
    dict
        Dotted name to value.

    Examples
    --------
    >>> from orthoproxy.runs.config import Training
    >>> changed_options(Config(training=Training(epochs=3)))
    {'training.epochs': 3}
    """
    defaults = flat(Config())
    return {
        name: value for name, value in flat(config).items() if value != defaults[name] and name not in OF_THE_MACHINE
    }


def images_an_epoch(config: Config, training: pd.DataFrame) -> int:
    """Count the images that an epoch trains on; a last batch that is not full is left out.

    Parameters
    ----------
    config
        Its training part.
    training
        The rows of the table that are trained on.

    Examples
    --------
    >>> from orthoproxy.runs.config import Training
    >>> from orthoproxy.data import make_table
    >>> images_an_epoch(Config(training=Training(batch_size=2)), make_table(["1", "2", "3"], ["a", "a", "b"]))
    2
    """
    labels = pd.factorize(training["label"])[0].tolist()
    sampler = BatchSampler(labels, config.training.batch_size, config.training.per_class)
    return len(sampler) * sum(sampler.sizes)

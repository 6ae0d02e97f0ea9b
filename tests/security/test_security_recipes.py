"""A recipe, a study or a card holds values: nothing that it names is imported, nothing in it is run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import refused
from jsonargparse import ArgumentParser
from records import record

from orthoproxy.cli import main as cli
from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.core.safe_parsing import parse_yaml
from orthoproxy.runs import recipes
from orthoproxy.runs.config import Config, flat
from orthoproxy.runs.model_card import license_of
from orthoproxy.runs.recipes import GROUPS, config_of, options_parser, parse
from orthoproxy.runs.study_configs import config_of_cell
from orthoproxy.studies.study_file import read_study

EVIL = "evil_for_the_tests"
KEYS = sorted({*flat(Config()), *GROUPS, "environment"})
OTHER_KEYS = ["nowhere", "nowhere.deep", "config", "print_config", "help", "__path__", "class_path", "init_args"]
CLASSES: list[Any] = [
    {"class_path": "os.system"},
    {"class_path": "os.system", "init_args": {"command": "touch MARKER"}},
    {"class_path": f"{EVIL}.X"},
    {"class_path": f"{EVIL}.X", "init_args": {"a": 1}, "dict_kwargs": {"b": 2}},
    {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "MARKER"]}},
    {"deep": [{"class_path": f"{EVIL}.X"}]},
    [{"class_path": f"{EVIL}.X"}],
    {"class_path": "orthoproxy.runs.config.Data"},
]
TAGS = [
    "!!python/object/apply:os.system [touch MARKER]",
    f"!!python/name:{EVIL}.X",
    f"!!python/module:{EVIL}",
    f"!!python/object/new:{EVIL}.X []",
    "!!python/object/apply:builtins.__import__ [evil_for_the_tests]",
    "!!timestamp x",
    "!!binary x",
    "!evil x",
]


@pytest.fixture(autouse=True)
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that writes a file when it is imported; it must not be, nor may a command have been run."""
    marker, place = tmp_path / "marker", tmp_path / "modules"
    place.mkdir()
    (place / f"{EVIL}.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass X: pass\n")
    monkeypatch.syspath_prepend(str(place))
    yield marker
    run = marker.exists() or EVIL in sys.modules
    sys.modules.pop(EVIL, None)
    record("nothing let in", "a recipe that names code", "code was run" if run else "nothing")
    assert not run


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    """One for all, since making it takes longer than its use."""
    return options_parser()


def nested(key: str, value: object) -> Any:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def write(path: Path, text: str, marker: Path) -> list[str]:
    path.write_text(text.replace("MARKER", str(marker)))
    return ["--config", str(path)]


def test_the_trap_does_spring(trap: Path) -> None:
    __import__(EVIL)
    assert trap.exists()
    trap.unlink()
    del sys.modules[EVIL]


@pytest.mark.parametrize("value", CLASSES, ids=str)
def test_a_class_at_every_key(value: Any, parser: ArgumentParser, tmp_path: Path, trap: Path) -> None:
    for key in [*KEYS, *OTHER_KEYS]:
        for content in (nested(key, value), {key: value}):  # also with the dots in one key
            words = write(tmp_path / "recipe.yaml", yaml.safe_dump(content), trap)
            with pytest.raises(InputError):
                config_of(parse(parser, words))


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_at_every_key(tag: str, parser: ArgumentParser, tmp_path: Path, trap: Path) -> None:
    for key in [*KEYS, *OTHER_KEYS]:
        text = json.dumps(nested(key, "HERE")).replace('"HERE"', f"{tag} ")
        words = write(tmp_path / "recipe.yaml", text, trap)
        with pytest.raises(InputError, match=r"recipe\.yaml: line 1: the tag "):
            config_of(parse(parser, words))


@pytest.mark.parametrize("value", [f"{EVIL}.X", "os.system", f"__import__('{EVIL}')", [f"{EVIL}.X"]], ids=str)
def test_a_name_in_place_of_a_group(value: Any, parser: ArgumentParser, tmp_path: Path, trap: Path) -> None:
    for key in sorted(GROUPS):
        words = write(tmp_path / "recipe.yaml", yaml.safe_dump(nested(key, value)), trap)
        with pytest.raises(InputError, match=f"{key}: .*; give keys and values"):
            config_of(parse(parser, words))


@pytest.mark.parametrize("value", [f"{EVIL}.X", f"__import__('{EVIL}')", f"${{{EVIL}.X}}"], ids=str)
def test_a_name_at_every_key_is_text_or_refused(value: str, parser: ArgumentParser, tmp_path: Path, trap: Path) -> None:
    for key in KEYS:
        words = write(tmp_path / "recipe.yaml", yaml.safe_dump(nested(key, value)), trap)
        try:
            config = config_of(parse(parser, words))
        except InputError:
            continue
        assert flat(config)[key] == value  # the fixture sees that nothing was imported


def test_the_command_ends_with_code_2_at_every_key(
    parser: ArgumentParser, tmp_path: Path, trap: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "options_parser", lambda *_: own)
    own = options_parser("train", "")
    own.add_argument("--out", required=True)
    own.add_argument("--resume", action="store_true")
    monkeypatch.setattr(own, "add_argument", lambda *_, **__: None)  # they are there
    for key in [*KEYS, *OTHER_KEYS]:
        words = write(tmp_path / "recipe.yaml", yaml.safe_dump(nested(key, {"class_path": "os.system"})), trap)
        said = refused(["train", *words, "--out", tmp_path / "run"], capsys)
        assert f"recipe.yaml: {key}" in said and re.search("a recipe (holds values only|cannot name another)", said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--loss", f"{EVIL}.X"],
        [f"--loss={EVIL}.X"],
        ["--loss.miner", f'{{"class_path": "{EVIL}.X"}}'],
        ["--loss.args", f'{{"margin": {{"class_path": "{EVIL}.X"}}}}'],
        ["--loss.class_path", f"{EVIL}.X"],
        ["--data.augmentation.class_path", f"{EVIL}.X"],
    ],
    ids=str,
)
def test_options_name_no_code_either(words: list[str], parser: ArgumentParser) -> None:
    with pytest.raises(InputError):
        config_of(parse(parser, words))


@pytest.mark.parametrize("key", sorted(GROUPS))
@pytest.mark.parametrize("value", [f"{EVIL}.X", {"class_path": f"{EVIL}.X"}], ids=str)
def test_the_parser_itself_imports_nothing(
    key: str, value: Any, parser: ArgumentParser, tmp_path: Path, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second line of defence, should the first one overlook something."""
    monkeypatch.setattr(recipes, "_require_plain", lambda arguments: None)
    words = write(tmp_path / "recipe.yaml", yaml.safe_dump(nested(key, value)), trap)
    with pytest.raises((InputError, ImportError)):
        parse(parser, words)


def test_a_recipe_names_no_other_file(parser: ArgumentParser, tmp_path: Path, trap: Path) -> None:
    (tmp_path / "secret").write_text("password: 1234")
    words = write(tmp_path / "recipe.yaml", f"config: {tmp_path / 'secret'}", trap)
    with pytest.raises(InputError, match="config: a recipe cannot name another") as caught:
        parse(parser, words)
    assert "1234" not in str(caught.value)


def laughs(depth: int) -> str:
    """Lists of lists that aliases repeat: ten times as many values in each line."""
    lines = ["a0: &a0 [1]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, depth)]
    return "\n".join(lines)


ENDLESS = {
    "aliases": laughs(30),
    "aliases in a field": "loss:\n  args:\n" + "\n".join(f"    {line}" for line in laughs(30).splitlines()),
    "itself": "loss: {args: &a {x: *a}}",
    "deep": "loss: {args: {x: " + "[" * 5000 + "]" * 5000 + "}}",
    "deep mappings": "{a: " * 5000 + "1" + "}" * 5000,
    "long": "# " + "x" * 3_000_000,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_would_grow_without_end(name: str, parser: ArgumentParser, tmp_path: Path, trap: Path) -> None:
    words = write(tmp_path / "recipe.yaml", ENDLESS[name], trap)
    with pytest.raises(InputError, match=r"recipe\.yaml: .*; a recipe holds values only"):
        parse(parser, words)
    with pytest.raises(InputError):
        read_study(tmp_path / "recipe.yaml")
    assert license_of(f"---\n{ENDLESS[name]}\n---\n") == "unknown"


def test_aliases_of_reasonable_size_are_fine() -> None:
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]")["b"] == [[1, 2], [1, 2]]
    assert parse_yaml("a: {x: 1}\nb: {x: 2}\n1: c\n'1': d") == {"a": {"x": 1}, "b": {"x": 2}, 1: "c", "1": "d"}
    with pytest.raises(ValueError, match="line 3: the key 'x' is there already"):
        parse_yaml("a:\n- x: 1\n  x: 1")


STUDY = """
title: t
base: base.yaml
seeds: 1
metric: recall@1
baseline: one
methods: {one: {}}
"""


@pytest.mark.parametrize("value", ["VALUE", "[VALUE]", "{VALUE: VALUE}"])
@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_in_every_key_of_a_study(tag: str, value: str, tmp_path: Path, trap: Path) -> None:
    keys = ["title", "base", "seeds", "metric", "baseline", "methods", "question", "set", "tuning_seeds", "compare"]
    keys += ["expected_seconds", "nowhere"]
    for key in keys:
        path = tmp_path / "study.yaml"
        write(path, f"{STUDY}\n{key}: {value.replace('VALUE', tag)}", trap)
        with pytest.raises(InputError, match=r"the tag |cannot be read as YAML"):
            read_study(path)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": f"{EVIL}.X"},
        {"loss.args": {"class_path": f"{EVIL}.X"}},
        {"loss.args": {"margin": {"class_path": "subprocess.Popen", "init_args": {"args": ["ls"]}}}},
        {"loss.class_path": f"{EVIL}.X"},
        {"class_path": f"{EVIL}.X"},
        {"config": "/etc/passwd"},
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["set", "methods"])
def test_the_options_of_a_study_name_no_code(where: str, options: Any, tmp_path: Path, trap: Path) -> None:
    (tmp_path / "base.yaml").write_text("training: {epochs: 1}")
    given = yaml.safe_load(STUDY)
    given |= {"set": options} if where == "set" else {"methods": {"one": {"set": options}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(InputError):
        study = read_study(tmp_path / "study.yaml")
        config_of_cell(study, study.first_cells[0])


def test_the_configuration_of_a_run_is_a_recipe_too(tmp_path: Path, trap: Path, capsys) -> None:
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "config.yaml", f"loss: {EVIL}.X", trap)
    assert main(["report", str(tmp_path / "run")]) == 2
    assert "config.yaml: loss: " in capsys.readouterr().err

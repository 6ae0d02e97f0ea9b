"""Safe parsing of untrusted JSON and YAML: plain values or an error, in bounded time and memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from orthoproxy.core.errors import InputError

MAX_CHARACTERS = 2_000_000  # the names of all 22,634 classes of the largest benchmark take a fifth
MAX_DEPTH = 40
MAX_VALUES = 200_000  # each counted as often as aliases repeat it
PLAIN_TAGS = {None, "!", "tag:yaml.org,2002:str"}


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; raises ValueError if it is malformed or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_yaml(text: str) -> Any:
    """Parse YAML of plain values; ValueError for tags, duplicate keys or excessive size, YAMLError if malformed."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text):,} characters, more than {MAX_CHARACTERS:,}")
    _check_events(text)
    return yaml.load(text, Loader=_Loader)  # noqa: S506 -- a safe loader


def read_yaml(path: Path, kind: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; raises InputError. `kind` is what it should be, for example a recipe."""
    if not path.is_file():
        raise InputError(f"no such {kind}", path=path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8 text", path=path, hint="save it as UTF-8") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(" ".join(str(error).split()), path=path, expected="YAML with plain values") from error
    if values is not None and not isinstance(values, dict):
        raise InputError(f"a {type(values).__name__}", path=path, expected="a mapping of keys and values")
    return values or {}


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """A safe loader that raises on duplicate keys, of which YAML parsers silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: duplicate key {key.value!r}")
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` reads as a number."""


# numbers such as 1e-3, which YAML 1.1 reads as text
_SCIENTIFIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+.0123456789"))


def dump_yaml(values: dict[str, Any]) -> str:
    """Write values so that `parse_yaml` reads the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _check_events(text: str) -> None:
    """Check tags, depth and size before anything is built, as parsers in C recurse until their stack ends."""
    sizes: dict[str, int] = {}  # values below each anchor, which merge keys copy
    open_collections: list[tuple[str | None, int]] = []  # anchor, and the number of values before it
    count = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) not in PLAIN_TAGS:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise ValueError(f"line {line}: tag {tag}, expected a plain value")
        if isinstance(event, yaml.AliasEvent):
            count += sizes.get(event.anchor, MAX_VALUES + 1)  # an unknown anchor would contain itself
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        elif isinstance(event, yaml.CollectionStartEvent):
            open_collections.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_collections.pop()
            sizes |= {anchor: count - before} if anchor else {}
        if count > MAX_VALUES:
            raise ValueError(f"line {line}: more than {MAX_VALUES:,} values, aliases expanded")
        if len(open_collections) > MAX_DEPTH:
            raise ValueError(f"line {line}: nested more than {MAX_DEPTH} levels deep")

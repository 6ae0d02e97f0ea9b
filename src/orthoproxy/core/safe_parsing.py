"""JSON, YAML and arrays that others wrote: plain values come out, or a reason why not; in little time and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

LONGEST = 2_000_000  # characters; the names of all 22,634 classes of the largest benchmark take a fifth
DEEPEST = 40  # mappings and lists in each other; parsers in C go down until their stack ends
MOST = 200_000  # values, each as often as an alias repeats it
PLAIN_TAGS = {None, "!", "tag:yaml.org,2002:str"}
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Parameters
    ----------
    text
        Of a file, perhaps of a stranger's.

    Returns
    -------
    object
        Of dictionaries, lists, texts, numbers, truth values and None.

    Raises
    ------
    ValueError
        If it is no JSON, or nested without end.

    Examples
    --------
    >>> parse_json('{"dim": 8}')
    {'dim': 8}
    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    ...
    ValueError: nested too deeply
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def open_npy(path: Path) -> np.ndarray:
    """Open an array in NumPy's format; nothing in it is unpickled, and what is not there takes no memory.

    Parameters
    ----------
    path
        ``.npy``.

    Returns
    -------
    numpy.ndarray
        Mapped from the file, to be read only.

    Raises
    ------
    ValueError
        If it is something else, or says that it is larger than the file.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "index.npy"
    >>> np.save(path, np.arange(3))
    >>> open_npy(path).tolist()
    [0, 1, 2]
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # of many types, as a header can be wrong in many ways
        raise ValueError(f"no array: {error}") from error
    if not isinstance(array, np.ndarray):  # np.load also opens zip archives
        array.close()
        raise ValueError("no array")
    return array


def parse_yaml(text: str) -> Any:
    """Parse YAML that holds values only: no tag that would make a Python object, no alias that would fill the memory.

    Parameters
    ----------
    text
        Of a file, perhaps of a stranger's.

    Returns
    -------
    object
        As from `yaml.safe_load`.

    Raises
    ------
    ValueError
        If it is too long, nested too deeply, grows too large by its aliases, has a tag, or a key twice in one place.
    yaml.YAMLError
        If it is no YAML.

    Examples
    --------
    >>> parse_yaml("training: {epochs: 3}")
    {'training': {'epochs': 3}}
    >>> parse_yaml("loss: !!python/object/apply:os.system [ls]")
    Traceback (most recent call last):
    ...
    ValueError: line 1: the tag !!python/object/apply:os.system; give plain values
    >>> parse_yaml("epochs: 3\\nepochs: 8")
    Traceback (most recent call last):
    ...
    ValueError: line 2: the key 'epochs' is there already; keep one
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters, and the limit is {LONGEST:,}")
    _check_events(text)
    _check_keys(text)
    return yaml.load(text, Loader=LOADER)


def _check_events(text: str) -> None:
    """Go through the parser's events, which takes no more memory than one of them."""
    sizes: dict[str, int] = {}  # values below each anchor
    nested: list[tuple[str | None, int]] = []  # anchor of each open mapping or list, and the values before it
    count = 0
    for event in yaml.parse(text, Loader=LOADER):
        if getattr(event, "tag", None) not in PLAIN_TAGS:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise ValueError(f"line {event.start_mark.line + 1}: the tag {tag}; give plain values")
        if isinstance(event, yaml.AliasEvent):
            count += sizes.get(event.anchor, MOST + 1)  # not known yet: it would hold itself
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        elif isinstance(event, yaml.CollectionStartEvent):
            nested.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = nested.pop()
            sizes |= {anchor: count - before} if anchor else {}
        if count > MOST:
            raise ValueError(f"line {event.start_mark.line + 1}: aliases make it more than {MOST:,} values")
        if len(nested) > DEEPEST:
            raise ValueError(f"line {event.start_mark.line + 1}: nested more than {DEEPEST} deep")


def _check_keys(text: str) -> None:
    """Refuse a key that comes twice, of which YAML's parsers keep the last without a word."""
    left, seen = [yaml.compose(text, Loader=LOADER)], set[int]()
    while left:
        node = left.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.MappingNode):
            left += [value for _, value in node.value]
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            names = [(key.tag, key.value) for key in keys]
            for position, key in enumerate(keys):
                if names[position] in names[:position]:
                    line = key.start_mark.line + 1
                    raise ValueError(f"line {line}: the key {key.value!r} is there already; keep one")

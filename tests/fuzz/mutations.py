"""Small changes to files that are right, which reach further into a reader than random bytes do."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

KINDS = ("flip", "truncate", "duplicate", "delete", "insert", "replace", "swap")
NUMBERS = [b"0", b"-1", b"99999999999999999999999", b"1e999", b"nan", b"2147483648", b"4294967295"]
BYTES = [
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\0\0\0\0\x80",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
]
WORDS = [b"../../../x", b"/etc/passwd", b"\n", b"\r", b"\t", b" ", b'"', b"'", b",", b":", b"{", b"[", b"[" * 3000]
WORDS += ["\u2028".encode(), "\u00a0".encode(), "é".encode(), "\U0001f426".encode(), b"%s%n", b"null", b"true", b"{}"]
TOKENS = [*NUMBERS, *BYTES, *WORDS]

Edit = tuple[str, int, int, bytes]  # what, where and how far in parts of 65,536 of the content, and a token


def edits(tokens: Sequence[bytes] = ()) -> st.SearchStrategy[list[Edit]]:
    """A few changes.

    Parameters
    ----------
    tokens
        Of the format, besides those that upset any reader.
    """
    place, length = st.integers(0, 65_535), st.one_of(st.integers(0, 40), st.integers(0, 65_535))
    return st.lists(
        st.tuples(st.sampled_from(KINDS), place, length, st.sampled_from([*tokens, *TOKENS])), min_size=1, max_size=5
    )


def mutated(content: bytes, changes: Sequence[Edit]) -> bytes:
    """Apply changes, one after the other.

    Examples
    --------
    >>> mutated(b"abcd", [("delete", 32768, 16384, b""), ("insert", 0, 0, b"X")])
    b'Xabd'
    """
    for kind, place, length, token in changes:
        start = place * len(content) // 65_536
        end = min(len(content), start + max(1, length * len(content) // 65_536))
        before, part, after = content[:start], content[start:end], content[end:]
        if kind == "flip":
            part = bytes([part[0] ^ (1 << length % 8)]) + part[1:] if part else part
        elif kind == "truncate":
            part, after = b"", b""
        elif kind == "duplicate":
            part = part * 3
        elif kind == "delete":
            part = b""
        elif kind == "insert":
            part = token + part
        elif kind == "replace":
            part = token
        elif kind == "swap":
            before, after = after, before
        content = (before + part + after)[:2_000_000]
    return content


def values() -> st.SearchStrategy[Any]:
    """What may stand in the place of something in a JSON file or a checkpoint."""
    odd = [
        None,
        True,
        -1,
        0,
        2**31,
        2**63,
        10**30,
        0.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        "../../x",
        "\0",
        "9" * 5000,
    ]
    return st.one_of(
        st.sampled_from(odd), st.sampled_from([[], {}, [[]], {"x": 1}, [None], [1, "x"]]).map(copy.deepcopy)
    )


def substituted(tree: Any, number: int, value: Any, drop: bool = False) -> Any:
    """Put a value in the place of one of the parts of a tree of dictionaries and lists, or take the part out.

    Examples
    --------
    >>> substituted({"a": [1, 2], "b": 3}, 2, "x")
    {'a': [1, 'x'], 'b': 3}
    """
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        items = (
            list(part.items()) if isinstance(part, dict) else list(enumerate(part)) if isinstance(part, list) else []
        )
        for key, inner in items:
            places.append((part, key))
            walk(inner)

    walk(tree)
    if not places or number % (len(places) + 1) == len(places):
        return value
    part, key = places[number % (len(places) + 1)]
    if drop:
        del part[key]
    else:
        part[key] = value
    return tree

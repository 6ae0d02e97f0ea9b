"""Small changes to valid files, which reach further into a parser than random bytes do."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

KINDS = ("flip", "truncate", "duplicate", "delete", "insert", "replace")
TOKENS = [b"0", b"-1", b"9" * 23, b"1e999", b"nan", b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xed\xa0\x80"]
TOKENS += [b"../../../x", b"/etc/passwd", b"\n", b"\r", b"\t", b'"', b",", b":", b"{", b"[" * 3000, b"null", b"%s%n"]
VALUES = [None, True, -1, 2**63, 10**30, 0.5, float("nan"), "", "x", "../../x", "\0", "9" * 5000, [], {}, [[]]]

Edit = tuple[str, int, int, bytes]  # kind, start and length in 65,536ths of the content, token


def edits(tokens: Sequence[bytes] = ()) -> st.SearchStrategy[list[Edit]]:
    """A few changes of bytes, some of them by tokens of the format."""
    length = st.one_of(st.integers(0, 40), st.integers(0, 65_535))
    edit = st.tuples(st.sampled_from(KINDS), st.integers(0, 65_535), length, st.sampled_from([*tokens, *TOKENS]))
    return st.lists(edit, min_size=1, max_size=5)


def mutate(content: bytes, changes: Sequence[Edit]) -> bytes:
    for kind, place, length, token in changes:
        start = place * len(content) // 65_536
        end = min(len(content), start + max(1, length * len(content) // 65_536))
        before, part, after = content[:start], content[start:end], content[end:]
        flipped = bytes([part[0] ^ (1 << length % 8)]) + part[1:] if part else part
        new = {"flip": flipped, "truncate": b"", "duplicate": part * 3, "delete": b"", "insert": token + part}
        content = (before + new.get(kind, token) + (b"" if kind == "truncate" else after))[:2_000_000]
    return content


def substitutions() -> st.SearchStrategy[tuple[int, Any, bool]]:
    """A place in a tree, what to put there, and whether to remove it instead."""
    return st.tuples(st.integers(0, 10_000), st.sampled_from(VALUES), st.booleans())


def substitute(tree: Any, number: int, value: Any, drop: bool) -> Any:
    """Replace or remove one part of a tree of dictionaries and lists, or the whole tree."""

    def places(part: Any) -> Iterator[tuple[Any, Any]]:
        keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        for key in keys:
            yield part, key
            yield from places(part[key])

    tree, value = copy.deepcopy(tree), copy.deepcopy(value)
    found = list(places(tree))
    if not found or number % (len(found) + 1) == len(found):
        return value
    part, key = found[number % (len(found) + 1)]
    if drop:
        del part[key]
    else:
        part[key] = value
    return tree

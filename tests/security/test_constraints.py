"""constraints.txt pins all that continuous integration installs, to what is installed here."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
EXTRAS = ("dev", "docs", "icons", "compare", "onnx", "search")  # those that .ci/run and the Makefile install
ONLY_BY_HAND = {"mutate"}  # of targets of the Makefile that continuous integration does not run
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?: *;.*)?")


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    matches = {line: PIN.fullmatch(line) for line in found}
    assert all(matches.values()), [line for line, match in matches.items() if not match]
    return {canonicalize_name(match["name"]): Version(match["version"]) for match in matches.values() if match}


def own_requirements() -> dict[str, list[Requirement]]:
    """Of the project itself, by extra; as pyproject.toml has them now, not as they were when it was installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(text) for text in texts] for extra, texts in found.items()}


def needed(requirements: Iterable[Requirement], extras: Iterable[str]) -> Iterator[Requirement]:
    """Those that this machine needs, with some extras or with none."""
    for requirement in requirements:
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ["", *extras]):
            yield requirement


def closure(extras: Iterable[str]) -> dict[str, Distribution | None]:
    """All packages that the project needs with these extras, directly or not; None: it is not installed."""
    own = own_requirements()
    left = [requirement for extra in ("", *extras) for requirement in needed(own[extra], ())]
    seen: set[tuple[str, str]] = set()
    found: dict[str, Distribution | None] = {}
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        new = {extra for extra in ["", *requirement.extras] if (name, extra) not in seen}
        seen |= {(name, extra) for extra in new}
        if not new:
            continue
        if name == "orthoproxy":
            left += [part for extra in requirement.extras for part in needed(own[extra], ())]
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            found[name] = None
            continue
        left += needed([Requirement(text) for text in found[name].requires or ()], requirement.extras)
    return found


def test_the_closure_is_no_short_list() -> None:
    found = closure(EXTRAS)
    assert len(found) > 100 and {"torch", "jinja2", "starlette", "zensical", "grpcio"} <= set(found)


def test_every_package_that_is_installed_is_pinned() -> None:
    known = pins()
    missing = sorted(name for name in closure(EXTRAS) if name not in known)
    assert missing == [], f"add to constraints.txt: {missing}"


def test_the_pins_are_what_is_installed_here() -> None:
    known = pins()
    other = {
        name: (str(known[name]), found.version)
        for name, found in closure(EXTRAS).items()
        if found is not None and name in known and Version(found.version) != known[name]
    }
    if other and not Path(ROOT / ".venv").exists():
        pytest.skip(f"these tests run in an environment that make did not install: {sorted(other)[:3]}")
    assert other == {}, "constraints.txt and what is installed differ: pinned, installed"


def test_the_pins_meet_what_the_project_asks_for() -> None:
    known = pins()
    refused = [
        str(requirement)
        for extra in ("", *EXTRAS)
        for requirement in needed(own_requirements()[extra], ())
        if (version := known.get(canonicalize_name(requirement.name))) and version not in requirement.specifier
    ]
    assert refused == []


def test_all_extras_that_are_installed_are_looked_at() -> None:
    """The Makefile installs extras by names of files, .venv/installed-EXTRAS."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    asked = {extra for names in re.findall(r"\.venv/installed-([\w,]+)", makefile) for extra in names.split(",")}
    by_ci = {extra for extra in asked if extra not in ONLY_BY_HAND}
    assert by_ci <= set(EXTRAS)

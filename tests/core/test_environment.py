"""Fingerprints of data tell images apart by names, labels and sizes, wherever they lie."""

import os
import shutil
from pathlib import Path

from orthoproxy.core.environment import file_versions, fingerprint
from orthoproxy.data import make_table


def test_a_fingerprint_tells_data_apart(tmp_path: Path) -> None:
    def print_of(paths: list[str], labels: str = "ab") -> str:
        return fingerprint(make_table(paths, list(labels)), file_versions(paths))

    paths = [str(tmp_path / "images" / name) for name in ("a.png", "b.png")]
    (tmp_path / "images").mkdir()
    for path in paths:
        Path(path).write_text(path)
    first = print_of(paths)
    elsewhere = Path(shutil.copytree(tmp_path / "images", tmp_path / "elsewhere"))
    assert print_of([str(elsewhere / "a.png"), str(elsewhere / "b.png")]) == first
    assert print_of(paths, "aa") != first
    assert fingerprint(make_table(paths, ["a", "b"], category="c"), file_versions(paths)) != first
    before = file_versions(paths)
    os.utime(paths[1], ns=(0, 1))
    assert (file_versions(paths) != before).any(axis=1).tolist() == [False, True]  # but is the same data
    assert print_of(paths) == first
    Path(paths[0]).unlink()
    assert print_of(paths) != first

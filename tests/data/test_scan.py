"""Leaving out what cannot be read; the scan itself is tested by the command that prints it."""

from pathlib import Path

from errors import error_of
from PIL import Image

from orthoproxy.data import make_table
from orthoproxy.data.audit.scan import drop_rows, find_unreadable


def test_a_split_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    good, missing = str(tmp_path / "good.png"), str(tmp_path / "missing.png")
    Image.new("L", (30, 50)).save(good)
    for table in (
        make_table([good, missing], ["a", "b"], split=["train", "test"]),
        make_table([missing], ["a"], "test"),
    ):
        assert error_of(drop_rows, table, find_unreadable(table)).path == missing

"""Boxes as a part of a path: written, read, rounded and cut to the picture."""

from pathlib import Path

import pytest
from errors import error_of

from orthoproxy.core.boxes import Box, add_boxes, split_box


def test_a_box_is_the_end_of_a_path() -> None:
    assert split_box(f"a b/c.jpg{Box(10, 20, 100, 200)}") == ("a b/c.jpg", (10, 20, 100, 200))
    assert str(Box(1, 2, 3, 4)) == "#xywh=1,2,3,4"
    for path in ("a.jpg", "a#xywh=1,2,3,4.jpg", "#xywh=1,2,3,4/a.jpg"):
        assert split_box(path) == (path, None)
    for text in ("1,2,3", "1,2,0,4", "1.5,2,3,4", "-1,2,3,4", "1,2,3,4,5", ""):
        assert error_of(split_box, f"a.jpg#xywh={text}").path == f"a.jpg#xywh={text}"


def test_edges_are_rounded_outward_and_bad_ones_named_with_their_row() -> None:
    rows = [["1.9", "2.1", "3.1", "5.9"], ["-0.5", "-3", "4", "6"], ["", "", "", ""]]
    boxed = ["a.jpg#xywh=1,2,3,4", "b.jpg#xywh=0,0,4,6", "c.jpg"]
    paths, csv = [(2, "a.jpg"), (3, "b.jpg"), (4, "c.jpg")], Path("x.csv")
    assert add_boxes("line", paths, rows, "csv", csv) == boxed
    for bad in ("4,2,4,6", "1,7,4,6", "1,2,4,", "1,2,4", "1,2,x,6", "nan,2,4,6", "1,2,inf,6", "-5,2,-1,6", "-9,2,4,6"):
        error = error_of(add_boxes, "line", paths[:2], [rows[0], bad.split(",")], "csv", csv)
        assert (error.field, error.path) == ("csv", csv) and f"line 3, b.jpg: box {bad}" in error.problem


@pytest.mark.parametrize(("box", "margin", "edges"), [
    (Box(20, 10, 30, 20), 0.0, (20, 10, 50, 30)),
    (Box(20, 10, 30, 20), 0.1, (17, 8, 53, 32)),
    (Box(1, 1, 98, 48), 0.5, (0, 0, 100, 50)),
    (Box(90, 40, 20, 10), 0.0, (90, 40, 100, 50)),  # half of it is inside
])  # fmt: skip
def test_a_box_with_its_margin_is_cut_to_the_picture(box: Box, margin: float, edges: tuple[int, ...]) -> None:
    assert box.edges((100, 50), margin) == edges
    for outside in (Box(91, 40, 20, 10), Box(100, 0, 10, 10), Box(200, 100, 50, 50)):
        assert error_of(outside.edges, (100, 50), margin).field == "box"

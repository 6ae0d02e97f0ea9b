"""Lists, collections and models name files inside their folder only; an image is not a program."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from command_line import input_error
from errors import error_of
from PIL import Image
from stand_ins import CAR_NAMES, write_mat

from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.data import cars_table, cub_table, inshop_table, read_image, sop_table
from orthoproxy.data.sources.folder import labelled_files
from orthoproxy.embedding.onnx_embedder import make_session


def cub(root: Path, name: str) -> pd.DataFrame:
    (root / "images.txt").write_text(f"1 001.A/a.jpg\n2 {name}\n")
    (root / "image_class_labels.txt").write_text("1 1\n2 150\n")
    return cub_table(root)


def sop(root: Path, name: str) -> pd.DataFrame:
    header = "image_id class_id super_class_id path\n"
    (root / "Ebay_train.txt").write_text(header + "1 1 1 a/a.JPG\n")
    (root / "Ebay_test.txt").write_text(header + f"2 2 1 {name}\n")
    return sop_table(root)


def inshop(root: Path, name: str) -> pd.DataFrame:
    (root / "img").mkdir()
    rows = f"2\nimage_name item_id evaluation_status\nimg/a.jpg id_1 train\n{name} id_2 query\n"
    (root / "list_eval_partition.txt").write_text(rows)
    return inshop_table(root)


def cars(root: Path, name: str) -> pd.DataFrame:
    (root / "car_ims").mkdir()
    rows = [{"relative_im_path": path, "class": number} for path, number in (("car_ims/1.jpg", 1), (name, 99))]
    write_mat(root / "cars_annos.mat", rows, CAR_NAMES)
    return cars_table(root)


READERS = [cub, sop, inshop, cars]


@pytest.mark.parametrize("name", ["/etc/passwd", "x/../../../secret.jpg", "../root-of-another/a.jpg"])
@pytest.mark.parametrize("read", READERS)
def test_a_published_list_does_not_lead_out_of_its_folder(read: Callable, name: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    assert name in str(error_of(read, tmp_path / "root", name))


@pytest.mark.parametrize("read", READERS)
def test_what_lies_inside_is_taken(read: Callable, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    table = read(tmp_path / "root", "002.B/../002.B/b..jpg")
    assert len(table) == 2 and all(path.startswith(str(tmp_path / "root")) for path in table.path)


def test_the_option_decides_for_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "lists" / "list.csv"
    path.parent.mkdir()
    path.write_text("path,label\n../a.png,cat\n")
    arguments = ["data", "describe", str(path), "--lists-only"]
    assert "allow_paths_outside_root" in (input_error(arguments).hint or "")
    assert main([*arguments, "--data.allow_paths_outside_root", "true"]) == 0


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(marker) (w) file closefile showpage\n"


@pytest.mark.parametrize("name", ["a.eps", "a.png", "a.jpg"])
def test_no_image_is_a_program(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    (tmp_path / name).write_bytes(POSTSCRIPT)
    with pytest.raises(InputError):
        read_image(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.format == "EPS"  # so it would have been opened
    assert len(labelled_files(tmp_path)) == (name != "a.eps")


def onnx_with_tensors_in(location: str) -> bytes:
    """An ONNX model that adds numbers of another file."""
    from onnx import TensorProto, helper

    numbers = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    entry = numbers.external_data.add()
    entry.key, entry.value = "location", location
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [16]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "add", ends[:1], ends[1:], [numbers])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.mark.parametrize("place", ["../secret", "/SECRET"])
def test_an_exported_model_reads_no_file_outside_its_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for secret in (tmp_path / "secret", tmp_path / "model" / "beside"):
        secret.write_bytes(bytes(64))
    path = tmp_path / "model" / "a.onnx"
    path.write_bytes(onnx_with_tensors_in(place.replace("/SECRET", str(tmp_path / "secret"))))
    with pytest.raises(InputError):
        make_session(path)
    path.write_bytes(onnx_with_tensors_in("beside"))
    make_session(path)  # so the model itself is right

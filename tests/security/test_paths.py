"""Lists, collections and models name files inside their folder only; an image is not a program."""

from collections.abc import Callable
from pathlib import Path

import pytest
from errors import error_of
from PIL import Image
from stand_ins import CAR_NAMES, write_mat

from orthoproxy.data import cars_table, cub_table, inshop_table, read_image, sop_table
from orthoproxy.data.sources.folder import labeled_files
from orthoproxy.embedding.onnx_embedder import make_session

SOP_HEADER = "image_id class_id super_class_id path"
INSHOP_HEADER = "image_name item_id evaluation_status"
LISTS = {  # whose second image is to be named
    cub_table: {"images.txt": "1 001.A/a.jpg\n2 NAME\n", "image_class_labels.txt": "1 1\n2 150\n"},
    sop_table: {"Ebay_train.txt": f"{SOP_HEADER}\n1 1 1 a/a.JPG\n", "Ebay_test.txt": f"{SOP_HEADER}\n2 2 1 NAME\n"},
    inshop_table: {"list_eval_partition.txt": f"2\n{INSHOP_HEADER}\nimg/a.jpg id_1 train\nNAME id_2 query\n"},
    cars_table: {},
}


def write_lists(root: Path, read: Callable, name: str) -> None:
    for folder in ("img", "car_ims"):
        (root / folder).mkdir(parents=True)
    rows = [{"relative_im_path": path, "class": number} for path, number in (("car_ims/1.jpg", 1), (name, 99))]
    write_mat(root / "cars_annos.mat", rows, CAR_NAMES)
    for place, text in LISTS[read].items():
        (root / place).write_text(text.replace("NAME", name))


@pytest.mark.parametrize("name", ["/etc/passwd", "x/../../../secret.jpg", "../root-of-another/a.jpg"])
@pytest.mark.parametrize("read", LISTS)
def test_a_published_list_does_not_lead_out_of_its_folder(read: Callable, name: str, tmp_path: Path) -> None:
    write_lists(tmp_path / "root", read, name)
    assert name in str(error_of(read, tmp_path / "root"))
    write_lists(tmp_path / "other", read, "002.B/../002.B/b..jpg")
    assert read(tmp_path / "other")["path"].str.startswith(str(tmp_path / "other")).tolist() == [True, True]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(marker) (w) file closefile showpage\n"


@pytest.mark.parametrize("name", ["a.eps", "a.png", "a.jpg"])
def test_no_image_is_a_program(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    (tmp_path / name).write_bytes(POSTSCRIPT)
    error_of(read_image, tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.format == "EPS"  # so it would have been opened
    assert len(labeled_files(tmp_path)) == (name != "a.eps")


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
    error_of(make_session, path)
    path.write_bytes(onnx_with_tensors_in("beside"))
    make_session(path)  # so the model itself is right

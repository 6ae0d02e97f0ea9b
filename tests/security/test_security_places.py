"""What lists, archives and addresses may name: places inside their folder, and encrypted connections."""

from __future__ import annotations

import http.server
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from io import BytesIO
from pathlib import Path
from shutil import which
from urllib.request import HTTPSHandler, Request, build_opener
from urllib.response import addinfourl

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.data import cars_table, cub_table, inshop_table, read_collection, read_image, sop_table
from orthoproxy.data.sources.download import ARCHIVES
from orthoproxy.data.sources.folder import labelled_files
from orthoproxy.data.sources.transfer import StayEncrypted, _RefusedError, transfer
from orthoproxy.embedding.onnx_embedder import make_session
from orthoproxy.runs.build import read_table
from orthoproxy.runs.config import Data


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
    rows = np.empty(2, dtype=[("relative_im_path", object), ("class", object)])
    rows[:] = [("car_ims/1.jpg", np.uint8(1)), (name, np.uint8(99))]
    names = np.array([f"Car {number}" for number in range(196)], dtype=object)
    savemat(root / "cars_annos.mat", {"annotations": rows, "class_names": names})
    return cars_table(root)


READERS = [cub, sop, inshop, cars]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../secret.jpg", "x/../../../secret.jpg", "../root-of-another/a.jpg"]
)
@pytest.mark.parametrize("read", READERS)
def test_a_published_list_does_not_lead_out_of_its_folder(read: Callable, name: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(InputError, match="take the list as it was published") as caught:
        read(tmp_path / "root", name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("read", READERS)
def test_what_lies_inside_is_taken(read: Callable, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    table = read(tmp_path / "root", "002.B/../002.B/b..jpg")
    assert len(table) == 2 and all(path.startswith(str(tmp_path / "root")) for path in table.path)


def test_the_option_decides_for_a_csv_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "list.csv"
    path.write_text("path,label\n../a.png,cat\n")
    with pytest.raises(InputError, match="outside_root"):
        read_table(Data(name="csv", path=str(path)))
    assert len(read_table(Data(name="csv", path=str(path), outside_root=True))) == 1
    arguments = ["data", "describe", "--data.name", "csv", "--data.path", str(path), "--no-open"]
    assert main(arguments) == 2
    assert "data.outside_root true" in capsys.readouterr().err
    assert main([*arguments, "--data.outside_root", "true"]) == 0


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd"])
def test_a_collection_is_what_lies_in_its_root(name: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "list.csv").write_text(f"path\na.png\n{name}\n")
    with pytest.raises(InputError, match="not in the folder"):
        read_collection(tmp_path / "root" / "list.csv")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(marker) (w) file closefile showpage\n"


@pytest.mark.parametrize("name", ["a.eps", "a.png", "a.jpg"])
def test_no_image_is_a_program(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    (tmp_path / name).write_bytes(POSTSCRIPT)
    with pytest.raises(InputError, match="it is no image"):
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
    with pytest.raises(InputError, match=r"a\.onnx: cannot be read as ONNX: .*(?i:external data)"):
        make_session(path)
    path.write_bytes(onnx_with_tensors_in("beside"))
    make_session(path)  # so the model itself is right


# encrypted connections


class Redirecting(HTTPSHandler):
    """As if a server answered over TLS, and sent one elsewhere."""

    def __init__(self, to: str) -> None:
        super().__init__()
        self.to = to

    def https_open(self, req: Request) -> addinfourl:
        headers = Message()
        first = req.full_url == "https://example.org/a"
        if first:
            headers["Location"] = self.to
        answer = addinfourl(BytesIO(b"" if first else b"content"), headers, req.full_url, 302 if first else 200)
        answer.msg = "Found"  # type: ignore[attr-defined]
        return answer


@pytest.mark.parametrize("to", ["http://example.org/b", "ftp://example.org/b", "HTTP://example.org/b"])
def test_a_download_stays_encrypted(to: str) -> None:
    with pytest.raises(_RefusedError, match="not encrypted"):
        build_opener(StayEncrypted, Redirecting(to)).open("https://example.org/a")


@pytest.mark.parametrize("to", ["https://example.org/b", "/b", "//example.org/b"])
def test_and_may_go_elsewhere(to: str) -> None:
    with build_opener(StayEncrypted, Redirecting(to)).open("https://example.org/a") as answer:
        assert answer.read() == b"content"


def test_what_is_downloaded_is_known_by_its_checksum_and_comes_over_tls() -> None:
    for archive in ARCHIVES.values():
        assert archive.url.startswith("https://") and archive.checksum and archive.algorithm in ("md5", "sha256")
        assert 0 < archive.size < archive.most_bytes < 20 * 10**9 and 0 < archive.most_files < 10**6


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[str]:
    """A server that speaks TLS with a certificate that nobody vouches for."""
    if which("openssl") is None:
        pytest.skip("there is no openssl here to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", key, "-out", certificate, *words]
    subprocess.run(list(map(str, made)), check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://localhost:{server.server_port}/birds.zip"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_a_server_that_nobody_vouches_for_is_not_believed(impostor: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="certificate verify failed"):
        transfer(impostor, 100, tmp_path / "birds.zip.part", "get it by hand", pauses=())
    assert not (tmp_path / "birds.zip.part").exists()

"""Search over HTTP, on catalogs in folders."""

import asyncio
import base64
import http.client
import io
import json
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import numpy as np
import pandas as pd
import pytest
from errors import error_of
from PIL import Image
from serving import COLORS, HERE, QUICK, TOKEN, client_of, make_catalog, make_halves, make_images, make_model, running
from starlette.testclient import TestClient

from orthoproxy.catalog.catalog import Catalog, image_id
from orthoproxy.catalog.index import migrate
from orthoproxy.core.errors import InputError
from orthoproxy.embedding.augmentation import augmented
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.server.app import PAGE, make_app
from orthoproxy.server.limits import Limits, RequestError
from orthoproxy.server.page import decimal_places
from orthoproxy.server.schemas import SearchOptions, SearchResult, SearchResults
from orthoproxy.server.service import Service

SECRET = "the words of a file that nobody may read"
ODD = "<b>\"odd'"
GREEN, RED = image_id("green/0.png"), image_id("red/0.png")
OUTSIDE = {"../secret.png": 404, "../secret.txt": 404, "words.png": 422, "link.png": 404, "gone.png": 404}
OUTSIDE |= {"/etc/passwd": 404}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and files that must not be served."""
    root = tmp_path_factory.mktemp("served") / "images"
    make_images(root)
    (root.parent / "secret.txt").write_text(SECRET)
    (root.parent / "secret.png").write_bytes((root / "red" / "0.png").read_bytes())
    (root / "words.png").write_text(SECRET)
    (root / "link.png").symlink_to(root.parent / "secret.png")
    return root


@pytest.fixture(scope="module")
def service(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder, models = tmp_path_factory.mktemp("catalogs"), [make_model(0), make_model(1)]
    paths = [f"{name}/{number}.png" for name in COLORS for number in range(5)]
    first = make_catalog(folder / "first", models[0], root, paths)
    second = make_catalog(folder / "second", models[1], root, [path for path in paths if path != "red/0.png"])
    odd = pd.DataFrame({"path": list(OUTSIDE)})
    odd.insert(0, "id", odd["path"].map(image_id))
    first.upsert(odd.assign(label=ODD, group="", content="0"), np.eye(8, dtype=np.float32)[: len(odd)])
    service = Service({"first": first, "second": second}, models, QUICK)
    close = service.close
    service.close = lambda: None  # by one of the applications that share it
    yield service
    close()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with client_of(make_app(service)) as client:
        yield client


def file(root: Path, path: str = "green/0.png") -> bytes:
    return (root / path).read_bytes()


def ids(answer: Any) -> list[str]:
    return [result["id"] for result in answer.json()["results"]]


def test_an_image_finds_itself_and_similar_ones(client: TestClient, root: Path) -> None:
    answer = client.post("/search", files={"image": file(root)}, data={"k": "5"})
    found = answer.json()
    assert answer.status_code == 200
    assert found["results"][0].pop("similarity") == pytest.approx(1, abs=1e-5)
    image = f"/images/{GREEN}?catalog=first"
    first = {"rank": 1, "id": GREEN, "label": "green", "group": "0", "path": "green/0.png", "image": image, "box": None}
    assert found["results"][0] == first
    assert {result["label"] for result in found["results"]} == {"green"}
    assert (found["catalog"], found["threshold"], found["matches"], found["label"]) == ("first", None, 5, "green")
    assert client.get(image).content == file(root)


def test_file_base64_embedding_and_id_agree(client: TestClient, service: Service, root: Path) -> None:
    model = service.served("first").model
    assert model is not None
    embedding = model.embed([str(root / "green" / "0.png")])[0].astype(np.float64)
    in_lines = base64.encodebytes(file(root)).decode()
    ways = [{"image": text} for text in (in_lines, f"data:image/png;base64,{in_lines}".replace("\n", ""))]
    ways += [{"embedding": (scale * embedding).tolist()} for scale in (7.5, 1e300, 1e-10)]
    answers = [ids(client.post("/search", json={**way, "k": 6})) for way in ways]
    answers.append(ids(client.post("/search", files={"image": file(root)}, data={"k": "6"})))
    assert answers == [answers[0]] * 6
    assert ids(client.post("/search", json={"id": GREEN, "k": 5})) == answers[0][1:]  # without itself


def test_filter_and_one_result_per_group(client: TestClient) -> None:
    asked = {"id": GREEN, "k": 5, "filter": "label not in ['green', 'red'] and path like '%.png'", "diverse": True}
    found = client.post("/search", json=asked).json()["results"]
    assert not {result["label"] for result in found} & {"green", "red"}
    assert len({result["group"] for result in found}) == len(found) == 5


def test_an_image_that_another_catalog_lacks_is_embedded(service: Service, root: Path) -> None:
    options = SearchOptions(k=3, catalog="second")
    by_id = service.search_id(RED, options, source="first")
    by_file = service.search_image(file(root, "red/0.png"), options)
    assert [result.id for result in by_id.results] == [result.id for result in by_file.results]
    error = error_of(service.search_id, RED, options)
    assert isinstance(error, RequestError) and (error.status, error.field) == (404, "id")


JSON = {"content-type": "application/json"}
WRONG: list[tuple[dict[str, Any], int, str | None]] = [
    ({"json": {"id": GREEN, "embedding": [1.0] * 8}}, 422, None),
    ({"json": {"id": "../../etc/passwd"}}, 422, "id"),
    ({"json": {"id": "0" * 32}}, 404, "id"),
    ({"json": {"id": GREEN, "catalog": "nowhere"}}, 404, "catalog"),
    ({"json": {"id": GREEN, "filter": "content == 'x'"}}, 422, "filter"),
    ({"json": {"id": GREEN, "filter": "label == 'x') or (label != 'x'"}}, 422, "filter"),
    ({"json": {"id": GREEN, "filter": "x" * 1_000_001}}, 422, "filter"),
    ({"json": {"embedding": [1.0] * 7}}, 422, "embedding"),
    ({"json": {"embedding": [0.0] * 8}}, 422, "embedding"),
    ({"content": b'{"embedding": [NaN, 1, 1, 1, 1, 1, 1, 1]}', "headers": JSON}, 422, "embedding.0"),
    ({"json": {"image": base64.b64encode(b"words").decode()}}, 415, "image"),
    ({"content": b"[" * 50_000, "headers": JSON}, 422, None),
    ({"content": b"words", "headers": {"content-type": "image/png"}}, 415, None),
    ({"content": b"words", "headers": {"content-type": "multipart/form-data"}}, 422, None),
    ({"files": {"file": b"words"}}, 422, "image"),
    ({"files": {"image": b"words"}, "data": {"k": "many"}}, 422, "k"),
    ({"files": {"image": b"words"}, "data": {"id": GREEN}}, 422, "id"),
    ({"files": {"image": bytes(30_000_000)}}, 413, None),
    ({"files": {"image": bytes(20_000_001)}}, 413, "image"),
]


@pytest.mark.parametrize(("request_", "status", "field"), WRONG)
def test_errors_have_a_status_and_name_the_field(client, request_: dict, status: int, field: str | None) -> None:
    answer = client.post("/search", **request_)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (status, field)
    assert set(error) == {"problem", "field", "expected", "hint"} and "orthoproxy/" not in answer.text


@pytest.mark.parametrize(("raised", "status", "field"), [
    (InputError("7 rows", field="queries", path="/secret"), 422, "queries"),  # of the client
    (InputError("/secret/folder: connection lost"), 503, None), (RuntimeError("/secret"), 500, None),
])  # fmt: skip
def test_faults_of_the_catalog_tell_the_client_nothing(raised, status, field, client, service, monkeypatch) -> None:
    monkeypatch.setattr(service.served("first").catalog, "search", Mock(side_effect=raised))
    answer = client.post("/search", json={"id": GREEN})
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)
    assert "secret" not in answer.text and ("retry-after" in answer.headers) == (status == 503)


def test_many_clients_get_what_one_gets_by_one_embedding_thread(client, service, root: Path, monkeypatch) -> None:
    model, used = service.served(None).model, set()
    assert isinstance(model, Embedder)
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda views: used.add(threading.get_ident()) or embed(views))
    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(client.post, "/search", files={"image": file(root)}) for _ in range(18)]
    expected = ids(client.post("/search", files={"image": file(root)}))
    assert [ids(answer.result()) for answer in asked] == [expected] * 18
    assert len(used) == 1  # PyTorch keeps memory for each thread that calls it


def test_a_client_leaves_places_for_others_and_more_than_all_places_get_503(service: Service, monkeypatch) -> None:
    monkeypatch.setattr(service, "limits", replace(QUICK, searches=4, searches_per_client=3))
    app, arrived = make_app(service), asyncio.Event()

    async def slow_body() -> AsyncIterator[bytes]:
        await arrived.wait()
        yield json.dumps({"id": GREEN}).encode()

    def client(address: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 5)), base_url=HERE)

    async def ask() -> list[int]:
        async with client("10.0.0.1") as greedy, client("10.0.0.2") as other:
            many = [asyncio.create_task(greedy.post("/search", content=slow_body(), headers=JSON)) for _ in range(300)]
            await asyncio.sleep(0.1)
            answers = [await other.post("/search", json={"id": GREEN}) for _ in range(2)]
            many.append(asyncio.create_task(other.post("/search", content=slow_body(), headers=JSON)))
            await asyncio.sleep(0.1)
            refused = await asyncio.wait_for(other.post("/search", json={"id": GREEN}), 60)
            assert refused.status_code == 503
            assert (await other.get("/health")).status_code == 200
            assert not any(task.done() for task in many)
            arrived.set()
            return [answer.status_code for answer in [*answers, *await asyncio.gather(*many)]]

    assert asyncio.run(ask()) == [200] * 303


def test_head_is_answered_as_get(client: TestClient) -> None:
    for path in ("/health", "/catalogs", f"{PAGE}/", f"/images/{GREEN}?size=160", f"/images/{'0' * 32}", "/search"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])


def test_a_body_that_does_not_arrive_gets_408(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "limits", replace(QUICK, body_seconds=0.05))
    with running(service) as address:
        for path, status in (("/search", 408), (f"{PAGE}/gradio_api/queue/join", 400)):
            connection = http.client.HTTPConnection(address.removeprefix("http://"))
            connection.request("POST", path, headers={**JSON, "content-length": "10"})
            assert connection.getresponse().status == status
            connection.close()


def test_images_and_thumbnails(client: TestClient, root: Path) -> None:
    answer = client.get(f"/images/{GREEN}")
    assert (answer.headers["content-type"], answer.content) == ("image/png", file(root))
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    small = client.get(f"/images/{GREEN}", params={"size": 160})
    assert (small.status_code, small.headers["content-type"]) == (200, "image/webp")
    assert client.get(f"/images/{GREEN}", params={"size": 160}).content == small.content
    assert client.get(f"/images/{GREEN}", params={"size": 161}).status_code == 422
    assert client.get(f"/images/{RED}", params={"catalog": "second"}).status_code == 404


def test_what_browsers_do_not_show_is_sent_as_jpeg(tmp_path: Path) -> None:
    pytest.importorskip("pi_heif", reason="the extra heic is not installed")
    root, model = tmp_path / "images", make_model()
    root.mkdir()
    pixels = np.asarray(Image.radial_gradient("L").resize((60, 40)).convert("RGB"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(root / "1.tiff", exif=exif)
    Image.fromarray(pixels).save(root / "2.bmp")
    Image.fromarray(pixels).save(root / "3.avif")
    shutil.copy(Path(__file__).parents[1] / "data" / "turned.heic", root / "4.heic")
    catalog = make_catalog(tmp_path / "catalog", model, root, sorted(path.name for path in root.iterdir()))
    limits = Limits(decode_workers=1, pixels=100, upload_bytes=100)  # of uploads
    service = Service({"odd": catalog}, [model], limits)
    with client_of(make_app(service)) as client:
        answer = client.get(f"/images/{image_id('1.tiff')}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        shown = np.asarray(Image.open(io.BytesIO(answer.content))).astype(float)
        assert np.abs(shown - pixels[::-1].swapaxes(0, 1)).mean() < 3  # upright
        for name, kind in {"1.tiff": "jpeg", "2.bmp": "bmp", "3.avif": "jpeg", "4.heic": "jpeg"}.items():
            for size, sent in {"": kind, "?size=160": "webp"}.items():
                answer = client.get(f"/images/{image_id(name)}{size}")
                assert (answer.status_code, answer.headers["content-type"]) == (200, f"image/{sent}")
            assert client.post("/search", json={"id": image_id(name), "box": "0,0,20,20"}).status_code == 200
        assert client.post("/search", files={"image": answer.content}).status_code == 413
        content = (root / "2.bmp").read_bytes()
        (root / "2.bmp").write_bytes(content[:18] + np.array([30_000, 3000], "<i4").tobytes() + content[26:])
        assert client.get(f"/images/{image_id('2.bmp')}?size=160").status_code == 413  # 90 megapixels


def test_rows_that_point_outside_the_root_are_not_served(client: TestClient) -> None:
    for path, status in OUTSIDE.items():
        for size in ("", "?size=160"):
            answer = client.get(f"/images/{image_id(path)}{size}")
            assert answer.status_code == status and SECRET not in answer.text


TRAVERSALS = ["/images/../secret.txt", "/images/..%2fsecret.txt", "/images/%252e%252e%252fsecret.txt", "/images/%00"]
TRAVERSALS += [f"/images/{GREEN}/../../secret.txt", "//etc/passwd"]
GRADIO = ("/file=", "/gradio_api/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/")
TRAVERSALS += [f"{PAGE}{route}{path}" for route in GRADIO for path in ("../../../../../etc/passwd", "{secret}")]
TRAVERSALS += [f"{PAGE}/gradio_api/proxy=http://127.0.0.1/", f"{PAGE}/gradio_api/upload", f"{PAGE}/monitoring"]
TRAVERSALS += [f"{PAGE}/custom_component/x/client/component/..%2f..%2fsecret.txt"]


def test_no_path_of_a_request_is_followed(service: Service, root: Path) -> None:
    with running(service) as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"))  # which does not tidy up paths
        for path in TRAVERSALS:
            connection.request("GET", path.replace("{secret}", str(root.parent / "secret.txt")))
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status in (404, 422), path
            assert SECRET.encode() not in body and b"root:" not in body
        connection.close()


def test_gradio_reads_no_file_that_a_request_names(client: TestClient, root: Path) -> None:
    """A component's value that claims to be a file would be copied to where it can be read."""
    secret = {"path": str(root.parent / "secret.txt"), "meta": {"_type": "gradio.FileData"}}
    dependencies = client.get(f"{PAGE}/config").json()["dependencies"]
    for dependency in dependencies:
        data = [secret] + [None] * (len(dependency["inputs"]) - 1)
        ask = {"data": data, "fn_index": dependency["id"], "session_hash": "abc", "trigger_id": None}
        assert client.post(f"{PAGE}/gradio_api/queue/join", json=ask).status_code == 200
    with client.stream("GET", f"{PAGE}/gradio_api/queue/data", params={"session_hash": "abc"}) as stream:
        said = "".join(stream.iter_text())
    assert said.count("process_completed") == len(dependencies)
    assert SECRET not in said and "Traceback" not in said


def test_everything_needs_the_token_and_other_bodies_are_small(service: Service) -> None:
    client = TestClient(make_app(service, token=TOKEN), base_url=HERE)
    assert client.get("/health").status_code == 200
    for path in ("/", "/search", f"/images/{GREEN}", "/openapi.json", f"{PAGE}/", f"{PAGE}/config"):
        assert client.get(path).status_code == 401
    assert client.get("/catalogs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/", auth=("anybody", TOKEN)).status_code == 200  # the page, as a browser asks for it
    cookies = ['settings={"a": [1, "b"]}; plain; =; seen=Tue, 01-Dec-2026 09:00:00 GMT', "list[]=1; é=(x); a=b=c"]
    headers = [("authorization", f"Bearer {TOKEN}"), *(("cookie", cookie.encode("latin-1")) for cookie in cookies)]
    assert [client.get(path, headers=headers).status_code for path in ("/catalogs", f"{PAGE}/")] == [200, 200]
    joining = client.post(f"{PAGE}/gradio_api/queue/join", content=bytes(100_000), auth=("anybody", TOKEN))
    assert joining.status_code == 413


def test_uploads_are_kept_for_every_model(client: TestClient, service: Service, root: Path) -> None:
    key = client.post("/uploads", files={"image": file(root)}).json()["upload"]
    for name in ("first", "second"):
        options = SearchOptions(k=3, catalog=name)
        kept, sent = service.search_upload(key, options), service.search_image(file(root), options)
        assert [result.id for result in kept.results] == [result.id for result in sent.results]
    assert error_of(service.search_upload, "x" * 22).field == "upload"
    assert client.post("/uploads", files={"image": b"words"}).status_code == 415
    assert client.post("/uploads", files={"image": file(root)}, data={"k": "1"}).status_code == 422


def test_catalogs_are_listed(client: TestClient, service: Service) -> None:
    model = service.served("second").catalog.model
    second = {"name": "second", "images": 19, "labels": 4, "dim": 8, "model": model, "takes_images": True}
    assert client.get("/catalogs").json()[1] == second
    first = service.served("first")
    assert set(first.labels) == {ODD, *COLORS} and first.labels[0] == ODD  # the most frequent
    assert len(set(first.samples)) == len(first.catalog.get(first.samples)) == 12


def test_places_show_that_a_similarity_is_below_the_threshold() -> None:
    def places(*similarities: float, threshold: float | None) -> int:
        results = [SearchResult.model_construct(similarity=value) for value in similarities]
        matches = sum(threshold is None or value >= threshold for value in similarities)
        return decimal_places(SearchResults.model_construct(results=results, threshold=threshold, matches=matches))

    assert places(0.98, 0.9699, 0.5, threshold=0.97) == 4
    assert places(0.9699999, threshold=0.97) == 7
    assert places(0.97, 0.5, threshold=0.97) == places(0.97, threshold=None) == places(threshold=0.97) == 3


def test_a_catalog_without_its_model_is_searched_by_id(service: Service, root: Path) -> None:
    alone = Service({"first": service.served("first").catalog}, [], QUICK)
    assert alone.search_id(GREEN, SearchOptions(k=2)).results
    assert error_of(alone.search_image, file(root)).field == "image"
    alone.decoders.close()


def test_a_model_also_serves_its_augmented_catalogs(root: Path, tmp_path: Path) -> None:
    model = make_model(0)
    make_catalog(tmp_path / "catalog", augmented(model), root, ["green/0.png", "red/0.png"]).close()
    service = Service({"catalog": Catalog.open(str(tmp_path / "catalog"))}, [model], QUICK)
    assert service.search_image(file(root)).results[0].similarity == pytest.approx(1, abs=1e-5)
    service.close()


def test_a_model_that_has_changed_is_an_error(tmp_path: Path, root: Path) -> None:
    model = str(tmp_path / "model")
    make_model(4).save(Path(model))
    make_catalog(tmp_path / "catalog", make_model(4), root, ["green/0.png", "red/0.png"], model).close()
    catalog, other = (Catalog.open(str(tmp_path / "catalog")) for _ in range(2))
    with client_of(make_app(Service({"catalog": catalog}, [], QUICK))) as client, other:
        make_model(5).save(Path(model))
        assert error_of(Service, {"catalog": other}, [], QUICK).field == "models"
        best = client.post("/search", files={"image": file(root)}).json()["results"][0]  # by the model it has loaded
        assert best["id"] == GREEN and best["similarity"] > 0.999
        migrate(other, make_model(5), model)
        for ask in ({"files": {"image": file(root)}}, {"json": {"id": GREEN}}):
            answer = client.post("/search", **ask)
            assert answer.status_code == 503 and "restart" in answer.json()["error"]["hint"]


def test_parts_of_images_are_searched_for_and_shown(root: Path, tmp_path: Path) -> None:
    model = make_model()
    service = Service({"halves": make_halves(root, tmp_path / "catalog", model)}, [model], QUICK)
    with client_of(make_app(service)) as client:
        content, left = file(root, "left/halves.png"), image_id("left/halves.png#xywh=0,0,40,40")
        Image.open(root / "left" / "halves.png").crop((0, 0, 40, 40)).save(half := tmp_path / "half.png")
        found = client.post("/search", files={"image": half.read_bytes()}).json()["results"]
        assert (found[0]["id"], found[0]["path"], found[0]["box"]) == (left, "left/halves.png", "0,0,40,40")
        form = client.post("/search", files={"image": content}, data={"box": "0,0,40,40"})
        in_json = client.post("/search", json={"image": base64.b64encode(content).decode(), "box": "0,0,40,40"})
        assert form.json()["results"] == in_json.json()["results"] == found
        for box, nearest in ({}, "red"), ({"box": "50,5,20,20"}, "green"):  # of the picture, not of its box
            assert client.post("/search", json={"id": left, **box}).json()["results"][0]["label"] == nearest
        small = Image.open(io.BytesIO(client.get(f"/images/{left}?size=160").content)).convert("RGB")
        assert small.size == (40, 40) and np.abs(np.asarray(small) - np.array(COLORS["red"])).max() < 12
        assert client.get(f"/images/{left}").content == content
        for bad in ("40,0,40", "1.5,0,40,40", "0,0,0,5", "70,0,80,40"):
            for route in ("/search", "/uploads"):
                answer = client.post(route, files={"image": content}, data={"box": bad})
                assert (answer.status_code, answer.json()["error"]["field"]) == (422, "box")
        assert client.post("/search", json={"embedding": [1.0] * 8, "box": "0,0,4,4"}).status_code == 422

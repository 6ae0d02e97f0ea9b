"""A catalog keeps what it is given and finds what is nearest: in a folder, and on a server."""

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from catalog_rows import DIM, some, write_parts
from errors import error_of

from orthoproxy.catalog import lance
from orthoproxy.catalog.catalog import Catalog, Hit, image_id
from orthoproxy.catalog.index import delete_paths, fit_index, images_to_prune, recall_measure
from orthoproxy.catalog.lance import LanceStore
from orthoproxy.core.errors import InputError
from orthoproxy.server.schemas import SearchOptions
from orthoproxy.server.service import Service

AWKWARD = [
    '"', "'", "\\", "a\\", "%", "_", "ä ö", "日本", "a\tb", "a\nb", " x ", "']", '" or path == "', "null", "\x7f",
]  # fmt: skip

OF_CLASS_3 = [f"3/{number}.png" for number in range(10_000)]


@pytest.fixture
def catalog(address: str) -> Iterator[Catalog]:
    with Catalog.create(address, DIM, "0123456789abcdef", "runs/x", "/pictures") as made:
        yield made


def nearest(rows: pd.DataFrame, embeddings: np.ndarray, query: np.ndarray, k: int) -> list[str]:
    order = np.argsort(-(embeddings.astype(np.float64) @ query.astype(np.float64)), kind="stable")[:k]
    return rows["id"].iloc[order].tolist()


def keys(hits: list[Hit]) -> list[str]:
    return [hit.id for hit in hits]


def ids(catalog: Catalog) -> set[str]:
    return {key for page in catalog.iterate_rows(["id"]) for key in page["id"]}


def test_what_is_written_is_there_when_it_is_opened_again(address: str) -> None:
    rows, embeddings = some(300)
    with Catalog.create(address, DIM, "0123456789abcdef", "runs/x", "/pictures") as catalog:
        catalog.upsert(rows.assign(label="old", content="0" * 32), embeddings[::-1])
        catalog.upsert(rows, embeddings)
        assert catalog.delete([*rows["id"][290:], "f" * 32]) == 10
        assert catalog.delete(rows["id"][290:].tolist()) == 0
    rows, embeddings = rows[:290], embeddings[:290]
    with Catalog.open(address) as catalog:
        facts = (catalog.dim, catalog.model, catalog.model_path, catalog.root)
        assert facts == (DIM, "0123456789abcdef", "runs/x", "/pictures")
        found = catalog.get(rows["id"].tolist()[::-1], with_embeddings=True)
        pd.testing.assert_frame_equal(found[rows.columns], rows[::-1].reset_index(drop=True), check_dtype=False)
        np.testing.assert_array_equal(np.stack(found["embedding"].tolist()), embeddings[::-1])
        read = np.stack([row for page in catalog.iterate_rows(["embedding"]) for row in page["embedding"]])
        np.testing.assert_array_equal(read[np.lexsort(read.T)], embeddings[np.lexsort(embeddings.T)])
        assert ids(catalog) == set(rows["id"]) and len(catalog) == 290
        assert catalog.get(["f" * 32]).empty and catalog.get([]).empty
        assert keys(catalog.search(embeddings[100:101], 290)[0]) == nearest(rows, embeddings, embeddings[100], 290)
        catalog.delete(rows["id"][:1].tolist())
        catalog.upsert(rows[:1].assign(label=None), embeddings[:1])  # and come back
        [hit] = catalog.search(embeddings[:1], 1)[0]
        assert (hit.id, hit.label) == (rows["id"][0], "")


def test_search_is_exact(catalog: Catalog) -> None:
    rows, embeddings = some(500)
    assert catalog.search(embeddings[:1], 5) == [[]] and ids(catalog) == set() and catalog.sample_ids(3) == []
    catalog.upsert(rows[:3], embeddings[:3])
    assert len(catalog.search(embeddings[:1], 5)[0]) == 3 and catalog.search(embeddings[:0], 5) == []
    catalog.upsert(rows, embeddings)
    info = catalog.info()
    assert (info["images"], info["labels"], info["groups"], info["index"]) == (500, 5, 3, "FLAT")
    queries = some(20, seed=1)[1]
    for query, hits in zip(queries, catalog.search(queries, 10), strict=True):
        assert keys(hits) == nearest(rows, embeddings, query, 10)
        by_id = rows.set_index("id")
        for hit in hits:
            row = by_id.loc[hit.id]
            assert (hit.path, hit.label, hit.group) == (f"/pictures/{row['path']}", row["label"], row["group"])
            assert hit.similarity == pytest.approx(float(embeddings[rows["id"] == hit.id][0] @ query), abs=1e-5)


def test_only_the_columns_needed_are_read_page_by_page(tmp_path: Path) -> None:
    rows, embeddings = some(20_000)
    with Catalog.create(str(tmp_path / "catalog"), DIM, "0123456789abcdef", "runs/x", "/pictures") as catalog:
        catalog.upsert(rows, embeddings)
        pages, read = [], catalog.store.pages
        catalog.store.pages = lambda columns: (pages.append(page) or page for page in read(columns))
        for call, columns in (
            (lambda: Service({"x": catalog}).close(), {"label", "id"}),
            (catalog.info, {"label", "group", "content"}),
            (partial(images_to_prune, catalog, rows["id"][100:], 100), {"id", "path"}),
            (partial(delete_paths, catalog, ["0/0.png"]), {"id", "path"}),
        ):
            pages.clear()
            call()
            assert max(map(len, pages)) < 10_000 and {name for page in pages for name in page} == columns


@pytest.mark.parametrize(("where", "meant"), [
    ('group == "" or path like "3/%"', lambda row: row.group == "" or row.path.startswith("3/")),
    ('label not in ["class 1", "class 2"]', lambda row: row.label not in ("class 1", "class 2")),
    ('not (label == "class 1" or group == "camera 0") and path != "2/2.png"',
     lambda row: not (row.label == "class 1" or row.group == "camera 0") and row.path != "2/2.png"),
    (f"path in {OF_CLASS_3}", lambda row: row.label == "class 3"),
    (" or ".join(f'path == "{path}"' for path in OF_CLASS_3[:1000]), lambda row: row.label == "class 3"),
], ids=["or, like", "not in", "not, and", "many values", "many or"])  # fmt: skip
def test_conditions(catalog: Catalog, where: str, meant: Callable[[pd.Series], bool]) -> None:
    rows, embeddings = some(60)
    catalog.upsert(rows, embeddings)
    wanted = rows[[meant(row) for _, row in rows.iterrows()]]
    hits = catalog.search(embeddings[:1], 60, where=where)[0]
    assert sorted(keys(hits)) == sorted(wanted["id"])
    assert keys(hits) == nearest(wanted, embeddings[wanted.index], embeddings[0], 60)


def test_text_of_all_kinds_is_kept_and_found(catalog: Catalog) -> None:
    rows, embeddings = some(len(AWKWARD))
    rows["label"], rows["path"] = AWKWARD, [f"{text}.png" for text in AWKWARD]
    rows["id"] = rows["path"].map(image_id)
    catalog.upsert(rows, embeddings)
    assert catalog.get(rows["id"].tolist())["label"].tolist() == AWKWARD
    for label in AWKWARD:
        text = label.replace("\\", "\\\\").replace("'", "\\'")
        hits = catalog.search(embeddings[:1], 50, where=f"label == '{text}'")[0]
        assert [hit.label for hit in hits] == [label]


@pytest.mark.parametrize("where", [None, 'label != "class 0"'])
def test_diverse_gives_one_result_a_group(catalog: Catalog, where: str | None) -> None:
    rows, embeddings = some(200)
    # all of one group nearest to the query, so that the first search finds nothing else
    query = embeddings[0]
    crowd = np.flatnonzero(rows["group"] == "camera 0")
    embeddings[crowd] += 3 * query
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    catalog.upsert(rows, embeddings)
    allowed = rows if where is None else rows[rows["label"] != "class 0"]
    best: dict[tuple[str, str], str] = {}
    for key in nearest(allowed, embeddings[allowed.index], query, 200):
        row = rows[rows["id"] == key].iloc[0]
        best.setdefault(("group", row.group) if row.group else ("label", row.label), key)
    hits = catalog.search(query[None], 10, where=where, diverse=True)[0]
    assert keys(hits) == list(best.values())[:10]
    assert keys(catalog.search(query[None], 2, where=where, diverse=True)[0]) == list(best.values())[:2]
    assert len({hit.group for hit in hits if hit.group}) == 3
    catalog.upsert(rows.assign(group="", label=""), embeddings)  # of which each is one of its own
    if where is None:
        assert keys(catalog.search(query[None], 8, diverse=True)[0]) == nearest(rows, embeddings, query, 8)


def test_invalid_arguments(catalog: Catalog) -> None:
    rows, one = some(1)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("label", lambda: catalog.upsert(rows.assign(label="x" * 2000), one)),
        *(("k", partial(catalog.search, one, k)) for k in (0, -1, 100_000)),
        *(("where", partial(catalog.search, one, 1, where)) for where in ("id == 'x'", "label == 'x' or 1 == 1")),
    ]
    for shape, value in (((1, DIM + 1), 0.25), ((1, DIM), 1.0), ((1, DIM), np.nan), ((1, DIM), 0.0), ((2, DIM), 0.25)):
        calls.append(("embeddings", partial(catalog.upsert, rows, np.full(shape, value))))
    for field, call in calls:
        assert error_of(call).field == field
    assert len(catalog) == 0


def test_there_is_one_catalog_at_an_address(address: str) -> None:
    assert not Catalog.exists(address)
    error = error_of(Catalog.open, address)
    assert error.path == address and "orthoproxy index" in (error.hint or "")
    Catalog.create(address, DIM, "m", "p").close()
    assert Catalog.exists(address)
    with pytest.raises(InputError, match="already"):
        Catalog.create(address, DIM, "m", "p")
    Catalog.open(address).close()


def test_an_index_above_a_size_with_its_recall_measured_also_after_an_interruption(catalog: Catalog) -> None:
    rows, embeddings = some(3000)
    catalog.upsert(rows, embeddings)
    assert fit_index(catalog) is None and catalog.store.index_type == "FLAT"
    assert recall_measure(catalog)() == 1.0
    catalog.store.exact_below = 0  # a search in memory would not use the index
    catalog.upsert(rows[:1], embeddings[:1])
    if isinstance(catalog.store, LanceStore):

        def interrupt() -> float:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            catalog.store.build_index(interrupt)
        with Catalog.open(catalog.address) as again:
            again.store.exact_below = 0
            assert again.store.index_type == "FLAT" and recall_measure(again)() == 1.0
    recall = fit_index(catalog)
    assert catalog.store.index_type in ("IVF", "HNSW") and fit_index(catalog) is None
    assert recall is not None and 0.9 < recall <= 1
    queries, is_exact = some(10, seed=1)[1], catalog.store.index_type == "IVF"  # with a condition
    for where, meets in (
        ("path like '0/%'", rows["path"].str.startswith("0/")),
        ("path like '0/1%'", rows["path"].str.startswith("0/1")),
        ("path == '1/1.png'", rows["path"] == "1/1.png"),
        ("label == 'none'", rows["label"] == "none"),
        ("label != 'class 0'", rows["label"] != "class 0"),
    ):
        allowed = rows[meets]
        found = [keys(hits) for hits in catalog.search(queries, 10, where)]
        exact = [nearest(allowed, embeddings[allowed.index], query, 10) for query in queries]
        assert all(len(one) == min(10, len(allowed)) and {*one} <= {*allowed["id"]} for one in found)
        missed = sum(len({*best} - {*one}) for best, one in zip(exact, found, strict=True))
        assert found == exact if is_exact else missed <= 0.05 * sum(map(len, exact))
    if is_exact:
        assert len(catalog.search(queries[:1], 2500)[0]) == 2500  # more than the partitions probed hold
    catalog.upsert(*some(3200))  # rows that the index does not have yet
    new = some(3200)[1][3100]
    assert keys(catalog.search(new[None], 1)[0]) == [image_id("0/3100.png")]


# ---- a folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "catalog"


def test_processes_write_and_tidy_up_at_the_same_time_and_no_row_is_lost(folder: Path) -> None:
    rows, embeddings = some(400)
    Catalog.create(str(folder), DIM, "m", "p").close()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    writers = [context.Process(target=write_parts, args=(str(folder), start, barrier)) for start in (0, 20, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    with Catalog.open(str(folder)) as catalog:
        assert len(catalog) == 400 and ids(catalog) == set(rows["id"])
        found = catalog.get(rows["id"].tolist(), with_embeddings=True)
        np.testing.assert_array_equal(np.stack(found["embedding"].tolist()), embeddings)


def test_the_rows_are_read_into_memory_once(folder: Path) -> None:
    with Catalog.create(str(folder), DIM, "m", "p") as catalog:
        catalog.upsert(*some(50))
        catalog.search(some(2)[1], 3)
        rows = catalog.store._in_memory
        catalog.search(some(2)[1], 3)
        assert rows is not None and catalog.store._in_memory is rows


@pytest.mark.parametrize("address", ["folder", pytest.param("s3", marks=pytest.mark.server)], indirect=True)
def test_the_last_changes_can_be_undone(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance, "MAX_CHANGES", 3)
    monkeypatch.setattr(lance, "MAX_VERSIONS", 0)
    rows, embeddings = some(60)
    with Catalog.create(address, DIM, "m", "p") as catalog, Catalog.open(address) as reader:
        assert error_of(catalog.store.undo).path == address
        for first in range(0, 60, 10):
            with catalog.store.undoable():
                catalog.upsert(rows[first : first + 10], embeddings[first : first + 10])
                catalog.delete([rows["id"][first]])
            catalog.store.optimize()
        with catalog.store.undoable():
            catalog.delete([])
        assert [count for _, count in catalog.store.history()] == [45, 36, 27]
        times = [when for when, _ in catalog.store.history()]
        assert times == sorted(times, reverse=True)
        for left in (45, 36, 27):
            catalog.store.undo()
            assert ids(reader) == set(rows["id"][: left // 9 * 10]) - set(rows["id"][::10])
            assert len(reader.search(embeddings[:1], 60)[0]) == left
        assert catalog.store.history() == []


def test_a_read_only_folder_can_be_searched() -> None:
    rows, embeddings = some(20)
    with tempfile.TemporaryDirectory() as folder:
        with Catalog.create(folder, DIM, "m", "p") as catalog:
            catalog.upsert(rows, embeddings)
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        user = os.geteuid()
        try:
            if user == 0:  # who may write anywhere
                os.seteuid(65534)
            with Catalog.open(folder) as catalog:
                assert keys(catalog.search(embeddings[3:4], 1)[0]) == [rows["id"][3]]
                assert error_of(catalog.delete, rows["id"][:1].tolist()).path == folder
        finally:
            os.seteuid(user)
            for path in (Path(folder), *Path(folder).rglob("*")):
                path.chmod(0o755)


@pytest.mark.parametrize("indexed", [False, True])
def test_a_search_sees_all_of_a_change_or_nothing(indexed: bool, folder: Path) -> None:
    rows, embeddings = some(100)
    with Catalog.create(str(folder), DIM, "m", "p") as writer, Catalog.open(str(folder)) as reader:
        writer.upsert(rows.assign(label="0"), embeddings)
        if indexed:
            writer.store.exact_below = reader.store.exact_below = 0
            assert fit_index(writer) is not None
        service = Service({"x": reader})
        seen: list[tuple] = []

        def change() -> None:
            for number in range(1, 1000):
                if len({*seen}) < 5:
                    writer.upsert(rows.assign(label=str(number)), embeddings)

        changes = threading.Thread(target=change)
        changes.start()
        while changes.is_alive():
            results = service.search_embedding(embeddings[0].tolist(), SearchOptions(k=100)).results
            seen.append((len(results), *{result.label for result in results}))
        changes.join()
        service.close()
    assert all(len(one) == 2 and one[0] == 100 for one in seen) and len({*seen}) >= 5


def test_a_start_that_was_killed_is_begun_again(folder: Path) -> None:
    Catalog.create(str(folder), DIM, "m", "p").close()
    for manifest in (folder / "images.lance" / "_versions").iterdir():
        manifest.unlink()  # written last
    assert not Catalog.exists(str(folder))
    with Catalog.create(str(folder), DIM + 1, "m", "p") as catalog:
        catalog.upsert(*some(5, dim=DIM + 1))
        assert len(catalog) == 5


def test_other_files_are_left_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    for place in (folder, folder / "thesis.txt"):
        assert str(error_of(Catalog.create, str(place), DIM, "m", "p").path) == str(place)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_damaged_catalog_is_an_error_and_left_as_it_is(folder: Path) -> None:
    with Catalog.create(str(folder), DIM, "m", "p") as catalog:
        catalog.upsert(*some(30))
    (data,) = (folder / "images.lance" / "data").iterdir()
    content = data.read_bytes()
    for damage in (data.unlink, lambda: data.write_bytes(content[: len(content) // 2])):
        damage()
        with Catalog.open(str(folder)) as catalog:
            for call in (lambda: catalog.search(some(1)[1], 1), lambda: list(catalog.iterate_rows()), catalog.info):
                assert error_of(call).path == str(folder)
    data.write_bytes(content)
    with Catalog.open(str(folder)) as catalog:
        assert len(ids(catalog)) == 30
    versions = folder / "images.lance" / "_versions"
    newest = min(versions.glob("*.manifest"))
    damages = (
        lambda: newest.write_bytes(newest.read_bytes()[:20]),
        newest.unlink,  # the version before is there
        lambda: versions.rename(folder.parent / "away"),
    )
    for damage in damages:
        damage()
        assert error_of(Catalog.open, str(folder)).path == str(folder)
        assert error_of(Catalog.create, str(folder), DIM, "m", "p").path == str(folder)


@pytest.mark.parametrize("text", ["[]", '{"format_version": 99}'])
def test_a_damaged_description_and_one_of_a_later_version(folder: Path, text: str) -> None:
    LanceStore.create(str(folder), DIM, text).close()
    assert error_of(Catalog.open, str(folder)).path == str(folder)


# ---- a server


def test_a_server_that_does_not_answer() -> None:
    address = "http://127.0.0.1:9/a-b"
    for opens in (lambda: Catalog.open(address), lambda: Catalog.create(address, DIM, "m", "p")):
        assert error_of(opens).path == address


@pytest.mark.server
def test_another_collection_is_not_taken_for_a_catalog(milvus: str) -> None:
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(milvus)
    client.create_collection("theirs", dimension=4)
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=4)
    client.create_collection("not_indexed", schema=schema)
    for name in ("theirs", "not_indexed"):
        assert error_of(Catalog.open, f"{milvus}/{name}").path == f"{milvus}/{name}"
    assert client.list_indexes("not_indexed") == []
    client.close()


@pytest.mark.server
def test_what_a_server_cannot_do_is_an_error(milvus: str) -> None:
    rows, embeddings = some(5)
    with Catalog.create(f"{milvus}/plain", DIM, "m", "p") as catalog:
        with catalog.store.undoable():
            catalog.upsert(rows, embeddings)
        for call in (lambda: catalog.versioned_store, partial(catalog.move, None, "q")):
            assert error_of(call).path == catalog.address
        assert ids(catalog) == set(rows["id"]) and catalog.model_path == "p"

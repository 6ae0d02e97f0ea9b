"""The places that a catalog may be in: a folder, and the servers that tests marked `server` start."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import milvus_server, s3_server


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with milvus_server(tmp_path_factory.mktemp("milvus") / "data") as address:
        yield address


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        s3_server(tmp_path_factory.mktemp("s3") / "data", "bucket") as variables,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in variables.items():
            patch.setenv(name, value)
        yield "s3://bucket"


@pytest.fixture(params=["folder", *(pytest.param(name, marks=pytest.mark.server) for name in ("milvus", "s3"))])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "catalog")
    return f"{request.getfixturevalue(request.param)}/test_{uuid.uuid4().hex}"

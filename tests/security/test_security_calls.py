"""No call in the package can run what a file holds, or leave a folder: the source is read, not only tried."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads", "marshal.load", "marshal.loads", "shelve.open",
    "joblib.load", "pd.read_pickle", "pandas.read_pickle", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load",
    "torch.hub.load", "torch.jit.load", "torch.serialization.load", "shutil.unpack_archive",
    "ssl._create_unverified_context", "pa.deserialize", "scipy.io.readsav",
}  # fmt: skip
METHODS = {"extractall", "extract", "unpack_archive"}  # of whatever object
LOADERS = {"SafeLoader", "CSafeLoader", "yaml.SafeLoader", "yaml.CSafeLoader", "LOADER"}
REQUIRED = {"torch.load": ("weights_only", True)}  # a keyword and the one value it may have
NEVER = {"allow_pickle": True, "shell": True, "trust_remote_code": True, "verify": False}


def unsafe_calls(source: str) -> Iterator[str]:
    """The calls in a source that could run what they are given, and the line of each."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: word.value for word in node.keywords if word.arg}
        values = {word: value.value for word, value in given.items() if isinstance(value, ast.Constant)}
        wrong = name in FORBIDDEN or (isinstance(node.func, ast.Attribute) and node.func.attr in METHODS)
        if name in REQUIRED:
            word, value = REQUIRED[name]
            wrong |= values.get(word) is not value
        if name == "yaml.load":
            wrong |= ast.unparse(given["Loader"]) not in LOADERS if "Loader" in given else True
        if name in ("np.load", "numpy.load"):
            wrong |= "allow_pickle" in given and values.get("allow_pickle") is not False
        wrong |= any(word in values and values[word] is value for word, value in NEVER.items())
        if wrong:
            yield f"line {node.lineno}: {ast.unparse(node)[:100]}"


def python_files() -> list[Path]:
    return sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), ROOT / "docs" / "figures.py"])


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_can_run_what_a_file_holds(path: Path) -> None:
    assert list(unsafe_calls(path.read_text(encoding="utf-8"))) == []


UNSAFE = [
    "pickle.load(file)",
    "pickle.loads(b'')",
    "torch.load(path)",
    "torch.load(path, weights_only=False)",
    "torch.load(path, weights_only=trusted)",
    "np.load(path, allow_pickle=True)",
    "np.load(path, allow_pickle=wanted)",
    "yaml.load(text)",
    "yaml.load(text, Loader=yaml.Loader)",
    "yaml.unsafe_load(text)",
    "eval('1')",
    "exec(code, {})",
    "subprocess.run('ls', shell=True)",
    "tarfile.open(path).extractall(folder)",
    "zipped.extract(member)",
    "shutil.unpack_archive(path)",
    "requests.get(url, verify=False)",
    "joblib.load(path)",
]


@pytest.mark.parametrize("call", UNSAFE)
def test_such_a_call_would_be_found(call: str) -> None:
    assert len(list(unsafe_calls(f"def read():\n    return {call}\n"))) == 1


def test_reading_that_is_safe_is_left_alone() -> None:
    safe = ["torch.load(p, weights_only=True)", "np.load(p)", "np.load(p, allow_pickle=False)", "yaml.safe_load(t)"]
    safe += ["yaml.load(t, Loader=LOADER)", "model.eval()", "re.compile('x')", "subprocess.run(['ls'])"]
    assert list(unsafe_calls("\n".join(safe))) == []


def imported_names(source: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_name_hides_such_a_call(path: Path) -> None:
    """``from pickle import loads`` would go by unseen."""
    hidden = {name.rpartition(".")[::2] for name in (*FORBIDDEN, *REQUIRED, "yaml.load", "numpy.load") if "." in name}
    found = {(module, name) for module, name in imported_names(path.read_text(encoding="utf-8"))}
    assert not {(module, name) for module, name in found if (module, "", name) in hidden or (module, name) in hidden}


def test_modules_are_imported_by_names_in_the_source() -> None:
    """But for one function, whose callers name the module."""
    odd = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
                literal = isinstance(node.args[0], ast.Constant)
                odd += [] if literal else [f"{path.name}: {ast.unparse(node)}"]
    assert odd == ["onnx.py: importlib.import_module(name)"]


def test_the_database_of_a_catalog_unpickles_nothing() -> None:
    """Milvus Lite reads a folder that may come from somebody else."""
    found = importlib.util.find_spec("milvus_lite")
    if found is None or not found.submodule_search_locations:
        pytest.skip("milvus-lite is not installed")
    files = [path for place in found.submodule_search_locations for path in Path(place).rglob("*.py")]
    assert len(files) > 20
    pickles = [
        f"{path.name} {call}"
        for path in files
        for call in unsafe_calls(path.read_text(encoding="utf-8"))
        if "pickle" in call or "marshal" in call or "eval(" in call or "exec(" in call
    ]
    assert pickles == []

"""`orthoproxy data`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orthoproxy.cli.options import DATASETS, Parser, config_overrides, print_table
from orthoproxy.core.errors import InputError

if TYPE_CHECKING:
    from orthoproxy.data.audit.verify import CopyCheck
    from orthoproxy.runs.config import DataConfig

MAX_EXAMPLES = 10  # printed; the JSON has all
COLUMNS = {"smallest": "min", "median": "median", "mean": "mean", "largest": "max", "single": "single-image"}


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "action",
        choices=("describe", "verify", "download"),
        help="describe: count and measure images; verify: check for missing, damaged and duplicate images, and against "
        "the published counts; download: get a dataset, into --data.root.",
    )
    parser.add_images(required=True)
    add("--lists-only", action="store_true", help="Use lists and file names only; open no image.")
    parser.add_json()
    parser.add_workers()
    parser.add_config_options(["data.root", "data.boxes", "data.allow_paths_outside_root"], "images")


def run(options: Any) -> int:
    from orthoproxy.data.audit.describe import describe_images
    from orthoproxy.data.audit.scan import scan_images
    from orthoproxy.data.audit.verify import verify_images
    from orthoproxy.runs.config import Config
    from orthoproxy.runs.dataset import read_table, require_outside

    overrides = config_overrides(options)
    if options.action == "download":
        _download(options.images, overrides.get("data.root"))
        return 0
    data = Config().with_overrides(overrides).with_absolute_paths().data
    require_outside(data, json=options.json)
    table = read_table(data)
    verify, scan = options.action == "verify", None
    if not options.lists_only:
        scan = scan_images(table["path"].tolist(), options.workers, hashes=verify)
    if not verify:
        description = describe_images(table, scan)
        options.write_json(description)
        _print_description(description, data)
        return 0
    checks = verify_images(data.name, table, scan, Path(data.root) if data.root else None, data.ignore)
    passed = all(check.status != "failed" for check in checks)
    result = {"name": data.name, "root": data.root, "opened": scan is not None, "passed": passed}
    options.write_json(result | {"checks": [check.to_dict() for check in checks]})
    _print_checks(checks, data)
    return 0 if passed else 2


def _download(name: str, root: str | None) -> None:
    from orthoproxy.data.sources.download import download

    if name not in DATASETS:
        raise InputError(name, field="images", expected=f"one of {', '.join(DATASETS)}")
    if root is None:
        raise InputError("missing", field="data.root", expected="the folder to download to")
    download(name, Path(root))


def _title(data: DataConfig) -> str:
    return f"{data.name} in {data.csv or data.root}" if data.csv or data.root else data.name


def _print_description(description: dict[str, Any], data: DataConfig) -> None:
    rows = [
        [name, *(f"{x:,}" for x in (*description[name].values(), *(sizes[key] for key in COLUMNS)))]
        for name, sizes in description["images_per_class"].items()
    ]
    columns = ["images", "classes", *COLUMNS.values()]
    print_table(["", *columns], rows, f"{_title(data)}; images per class", right=columns)
    if sizes := description.get("sizes"):
        rows = [[side, *(f"{x:,}" for x in sizes[side].values())] for side in ("width", "height")]
        print_table(["pixels", *sizes["width"]], rows, right=[*sizes["width"]])
        print(f"largest image: {sizes['megapixels']['max']} megapixels")
    if unreadable := description.get("unreadable"):
        print(f"unreadable images: {unreadable['count']:,}")
        _print_examples(unreadable["images"], data)


def _print_checks(checks: list[CopyCheck], data: DataConfig) -> None:
    rows = [["FAILED" if check.status == "failed" else check.status, check.name, check.summary] for check in checks]
    print_table(["", "check", "result"], rows, _title(data))
    for check in checks:
        # duplicates within a class matter little, and the table shows counts
        if check.items and not check.name.endswith("within a class") and not check.name.startswith("counts"):
            print(f"{check.name}:")
            _print_examples(check.items, data)
    if any(check.items and check.name.endswith("across splits") for check in checks):
        print("note: splits share images, so test scores are too high; published datasets contain some of these too")


def _print_examples(items: list[Any], data: DataConfig) -> None:
    root = Path(data.root) if data.root else Path(data.csv or "").parent
    for item in items[:MAX_EXAMPLES]:
        print(f"  {_format_example(item, root)}")
    if len(items) > MAX_EXAMPLES:
        print(f"  ... and {len(items) - MAX_EXAMPLES:,} more; --json FILE lists all")


def _format_example(item: Any, root: Path) -> str:
    """Format a path, a path with a reason, or a group of duplicates."""
    if isinstance(item, str):
        return str(Path(item).relative_to(root)) if Path(item).is_relative_to(root) else item
    if isinstance(item, dict):
        return f"{_format_example(item['path'], root)}: {item['reason']}"
    images = (f"{_format_example(x['path'], root)} ({' '.join((x['split'], x['label'])).strip()})" for x in item)
    return " = ".join([*islice(images, MAX_EXAMPLES), *["..."] * (len(item) > MAX_EXAMPLES)])

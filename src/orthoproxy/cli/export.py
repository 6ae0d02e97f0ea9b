"""`orthoproxy export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orthoproxy.cli.options import Parser, config_overrides
from orthoproxy.core.errors import InputError, os_errors_as_input_errors


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", help="A run folder.")
    add("--out", required=True, metavar="FILE.onnx", help="File to write; model/ with the model card goes beside it.")
    add("--int8", action="store_true", help="8-bit weights: smaller and faster, less accurate.")
    text = "Fraction of queries of unknown classes that may get a match; sets the no-match threshold (default: .01)."
    add("--false-match-rate", type=float, metavar="X", help=text)
    add("--license", help="License for the model card, for example apache-2.0.")
    parser.add_json()
    parser.add_workers()
    parser.add_moved_images()


def run(options: Any) -> None:
    from orthoproxy.runs.dataset import require_outside
    from orthoproxy.runs.evaluate import FALSE_MATCH_RATE
    from orthoproxy.runs.export import export_run
    from orthoproxy.runs.model_card import no_match_words
    from orthoproxy.runs.run_folder import RunFolder

    out, rate = Path(options.out), options.false_match_rate
    rate = FALSE_MATCH_RATE if rate is None else rate
    if out.suffix != ".onnx":
        raise InputError(options.out, field="out", expected="a file that ends in .onnx")
    overrides = config_overrides(options)
    if run := RunFolder.find(options.run, overrides):
        require_outside(run.current_config.data, out=out, json=options.json)
    with os_errors_as_input_errors(out, "run the command again"):
        exported = export_run(options.run, out, options.int8, rate, options.license, overrides, options.workers)
        metadata, matching = exported.metadata, exported.matching
        scores = exported.scores and exported.scores.to_dict()
        check = {"images": exported.images, "max_difference": exported.difference, "scores": scores}
        options.write_json({"path": options.out, **metadata.model_dump(), "check": check})
        print(f"{out}: {metadata.precision}, {out.stat().st_size / 1e6:.1f} MB, model {metadata.identity}")
        print(f"checked: {metadata.checked}")
        if matching is None:
            print("note: no threshold for no match, since the run has no validation classes")
        elif metadata.threshold is None:
            needed, queries = f"{1 / rate:.0f}", len(matching.other)
            print(f"note: no threshold for no match, which takes {needed} validation queries (found {queries})")
        else:
            print(no_match_words(matching, rate))
        print(f"{out.parent / 'model'}: the model and its card")

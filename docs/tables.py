"""Write the tables of all studies to docs/studies, and check findings.md against them: python docs/tables.py."""

import re
import sys
from pathlib import Path

from orthoproxy.reports.text import interval, mean
from orthoproxy.studies import read_results, read_study, to_markdown
from orthoproxy.studies.results import METRICS, score_matrix
from orthoproxy.studies.statistics import mean_score

DOCS, STUDIES = Path(__file__).parent, Path(__file__).parent.parent / "studies"
SCORE = re.compile("[+\N{MINUS SIGN}]?\\d[\\d.]* \\[[^]]+]")  # with its interval


def main() -> None:
    (DOCS / "studies").mkdir(exist_ok=True)
    lines, scores = ["# Tables of all studies", ""], {}
    for path in sorted(STUDIES.glob("*.yaml")):
        study, file = read_study(path), STUDIES / "results" / f"{path.stem}.parquet"
        results = read_results(file) if file.is_file() else []
        tested = [result for result in results if result.test]
        if not tested:
            continue  # planned, or not yet evaluated
        text = to_markdown(study, results)
        (DOCS / "studies" / f"{study.name}.md").write_text(text, encoding="utf-8")
        lines.append(f"- [{study.name}]({study.name}.md): {study.title}")
        scores[study.name] = {*SCORE.findall(text)}
        if len(tested) < 10:  # an incomplete study, cited by trial
            estimates = [mean_score(*score_matrix([result], metric)) for result in tested for metric in METRICS]
            scores[study.name] |= {f"{mean(estimate)} {interval(estimate)}" for estimate in estimates}
    (DOCS / "studies" / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if wrong := unknown_scores((DOCS / "findings.md").read_text(encoding="utf-8"), scores):
        sys.exit("\n".join(["findings.md: not a score of the studies that its section names:", *wrong]))


def unknown_scores(page: str, scores: dict[str, set[str]]) -> list[str]:
    """List scores in the page's tables that are in none of the studies named in the same section."""
    wrong = []
    for section in re.split(r"^##+ ", page, flags=re.MULTILINE):
        studies = [name for name in scores if f"`{name}`" in section]
        known = {score for name in studies for score in scores[name]}
        rows = [line for line in section.splitlines() if line.startswith("|") and studies]
        wrong += [f"{score} in {row}" for row in rows for score in SCORE.findall(row) if score not in known]
    return wrong


if __name__ == "__main__":
    main()

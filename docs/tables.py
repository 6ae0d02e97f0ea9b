"""Write the tables of all studies to docs/studies: python docs/tables.py (part of make docs)."""

from pathlib import Path

from orthoproxy.studies import read_results, read_study, to_markdown

DOCS, STUDIES = Path(__file__).parent, Path(__file__).parent.parent / "studies"

(DOCS / "studies").mkdir(exist_ok=True)
lines = ["# Tables of all studies", ""]
for path in sorted(STUDIES.glob("*.yaml")):
    study, file = read_study(path), STUDIES / "results" / f"{path.stem}.parquet"
    results = read_results(file) if file.is_file() else []
    if not any(result.test for result in results):
        continue  # planned, or not yet evaluated
    text = to_markdown(study, results)
    (DOCS / "studies" / f"{study.name}.md").write_text(text, encoding="utf-8")
    lines.append(f"- [{study.name}]({study.name}.md): {study.title}")
(DOCS / "studies" / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

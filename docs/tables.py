"""Write the tables of all studies to docs/studies: python docs/tables.py (part of make docs)."""

from pathlib import Path

from orthoproxy.studies import read_results, read_study, to_markdown

DOCS, STUDIES = Path(__file__).parent, Path(__file__).parent.parent / "studies"

(DOCS / "studies").mkdir(exist_ok=True)
lines = ["# Tables of all studies", ""]
for path in sorted(STUDIES.glob("*.yaml")):
    study, results = read_study(path), STUDIES / "results" / f"{path.stem}.parquet"
    if not results.is_file():
        continue  # only planned so far
    text = to_markdown(study, read_results(results))
    (DOCS / "studies" / f"{study.name}.md").write_text(text, encoding="utf-8")
    lines.append(f"- [{study.name}]({study.name}.md): {study.title}")
(DOCS / "studies" / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

"""Diagnosis of a trained model: overfitting, collapsed proxies, confused classes, label errors, embedding dimension."""

from orthoproxy.diagnosis.diagnose import diagnose, render_diagnosis, summary_lines
from orthoproxy.diagnosis.findings import Check, Diagnosis, Finding
from orthoproxy.diagnosis.inputs import DiagnosisInput, EmbeddedSplit
from orthoproxy.diagnosis.label_errors import corrupt_labels, find_suspects, leave_one_out, whiten

__all__ = [
    "Check",
    "Diagnosis",
    "DiagnosisInput",
    "EmbeddedSplit",
    "Finding",
    "corrupt_labels",
    "diagnose",
    "find_suspects",
    "leave_one_out",
    "render_diagnosis",
    "summary_lines",
    "whiten",
]

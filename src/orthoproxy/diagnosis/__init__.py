"""Diagnosis of a trained model: overfitting, collapsed proxies, confused classes, label errors, embedding dimension."""

from orthoproxy.diagnosis.diagnose import diagnose, render_diagnosis, summary_lines
from orthoproxy.diagnosis.findings import Check, Diagnosis, Finding
from orthoproxy.diagnosis.inputs import DiagnosisInput, EmbeddedSplit

__all__ = [
    "Check",
    "Diagnosis",
    "DiagnosisInput",
    "EmbeddedSplit",
    "Finding",
    "diagnose",
    "render_diagnosis",
    "summary_lines",
]

"""Diagnosis of a trained model: overfitting, collapsed proxies, confused classes, label errors."""

from orthoproxy.diagnosis.diagnose import diagnose
from orthoproxy.diagnosis.findings import Diagnosis
from orthoproxy.diagnosis.inputs import DiagnosisInput, EmbeddedSplit

__all__ = ["Diagnosis", "DiagnosisInput", "EmbeddedSplit", "diagnose"]

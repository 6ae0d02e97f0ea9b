"""What limits a trained model: checks that measure, and findings with their evidence and what to try."""

from orthoproxy.diagnosis.confusions import confusions
from orthoproxy.diagnosis.crowding import crowding
from orthoproxy.diagnosis.diagnose import diagnose, lines
from orthoproxy.diagnosis.findings import Check, Diagnosis, Finding
from orthoproxy.diagnosis.label_errors import evened, out_of_sample, plant, suspects
from orthoproxy.diagnosis.overfitting import recall_gap
from orthoproxy.diagnosis.page import render_diagnosis
from orthoproxy.diagnosis.size import growth, participation_ratio
from orthoproxy.diagnosis.subject import Embedded, Subject

__all__ = [
    "Check",
    "Diagnosis",
    "Embedded",
    "Finding",
    "Subject",
    "confusions",
    "crowding",
    "diagnose",
    "evened",
    "growth",
    "lines",
    "out_of_sample",
    "participation_ratio",
    "plant",
    "recall_gap",
    "render_diagnosis",
    "suspects",
]

"""From images on disk to one table, and from the table to batches of pixels."""

from orthoproxy.data.csv import csv_table
from orthoproxy.data.datasets import EvaluationImages, TrainingImages
from orthoproxy.data.folder import folder_table
from orthoproxy.data.icons import icons_table
from orthoproxy.data.images import read_image, to_rgb
from orthoproxy.data.samplers import BatchSampler
from orthoproxy.data.table import assign_split, hold_out_validation, make_table, only, rank_by_hash
from orthoproxy.data.transforms import evaluation_transform, training_transform

__all__ = [
    "BatchSampler",
    "EvaluationImages",
    "TrainingImages",
    "assign_split",
    "csv_table",
    "evaluation_transform",
    "folder_table",
    "hold_out_validation",
    "icons_table",
    "make_table",
    "only",
    "rank_by_hash",
    "read_image",
    "to_rgb",
    "training_transform",
]

"""From images on disk to one table, and from the table to batches of pixels."""

from orthoproxy.data.cars import cars_table
from orthoproxy.data.csv import csv_table
from orthoproxy.data.cub import cub_table
from orthoproxy.data.datasets import EvaluationImages, TrainingImages
from orthoproxy.data.folder import folder_table
from orthoproxy.data.icons import icons_table
from orthoproxy.data.images import read_image, to_rgb
from orthoproxy.data.inshop import inshop_table
from orthoproxy.data.samplers import BatchSampler
from orthoproxy.data.sop import sop_table
from orthoproxy.data.table import assign_split, hold_out_validation, make_table, only, rank_by_hash
from orthoproxy.data.transforms import evaluation_transform, training_transform

__all__ = [
    "BatchSampler",
    "EvaluationImages",
    "TrainingImages",
    "assign_split",
    "cars_table",
    "csv_table",
    "cub_table",
    "evaluation_transform",
    "folder_table",
    "hold_out_validation",
    "icons_table",
    "inshop_table",
    "make_table",
    "only",
    "rank_by_hash",
    "read_image",
    "sop_table",
    "to_rgb",
    "training_transform",
]

"""From images on disk to one table, and from the table to batches of pixels."""

from orthoproxy.data.datasets import EvaluationImages, TrainingImages
from orthoproxy.data.images import read_image
from orthoproxy.data.samplers import BatchSampler
from orthoproxy.data.sources.cars import cars_table
from orthoproxy.data.sources.collection import read_collection
from orthoproxy.data.sources.csv import csv_table
from orthoproxy.data.sources.cub import cub_table
from orthoproxy.data.sources.folder import folder_table
from orthoproxy.data.sources.icons import icons_table
from orthoproxy.data.sources.inshop import inshop_table
from orthoproxy.data.sources.sop import sop_table
from orthoproxy.data.table import assign_split, hold_out_validation, make_table
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
    "read_collection",
    "read_image",
    "sop_table",
    "training_transform",
]

"""From images on disk to one table, and from the table to batches of pixels."""

from orthoproxy.data.audit.describe import describe_images
from orthoproxy.data.audit.scan import drop_rows, find_unreadable, scan_images
from orthoproxy.data.audit.verify import CopyCheck, verify_images
from orthoproxy.data.cache import cached_images
from orthoproxy.data.datasets import EvaluationImages, TrainingFeatures, TrainingImages
from orthoproxy.data.images import CroppableImage, read_croppable_image, read_image, to_rgb
from orthoproxy.data.loading import iterate_batches, loader_options
from orthoproxy.data.samplers import BatchSampler
from orthoproxy.data.sources.cars import cars_table
from orthoproxy.data.sources.collection import Collection, make_collection, read_collection
from orthoproxy.data.sources.csv import csv_table
from orthoproxy.data.sources.cub import cub_table
from orthoproxy.data.sources.folder import folder_table
from orthoproxy.data.sources.icons import icons_table
from orthoproxy.data.sources.inshop import inshop_table
from orthoproxy.data.sources.sop import sop_table
from orthoproxy.data.table import assign_split, hold_out_validation, make_table, rank_by_hash, select_split
from orthoproxy.data.transforms import evaluation_size, evaluation_transform, training_transform

__all__ = [
    "BatchSampler",
    "Collection",
    "CopyCheck",
    "CroppableImage",
    "EvaluationImages",
    "TrainingFeatures",
    "TrainingImages",
    "assign_split",
    "cached_images",
    "cars_table",
    "csv_table",
    "cub_table",
    "describe_images",
    "drop_rows",
    "evaluation_size",
    "evaluation_transform",
    "find_unreadable",
    "folder_table",
    "hold_out_validation",
    "icons_table",
    "inshop_table",
    "iterate_batches",
    "loader_options",
    "make_collection",
    "make_table",
    "rank_by_hash",
    "read_collection",
    "read_croppable_image",
    "read_image",
    "scan_images",
    "select_split",
    "sop_table",
    "to_rgb",
    "training_transform",
    "verify_images",
]

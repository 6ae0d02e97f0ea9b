"""From images on disk to one table, and from the table to batches of pixels."""

from typing import TYPE_CHECKING

from orthoproxy.core.lazy import lazy_imports
from orthoproxy.data.evaluation_images import EvaluationImages
from orthoproxy.data.images import read_image
from orthoproxy.data.sources.cars import cars_table
from orthoproxy.data.sources.collection import read_collection
from orthoproxy.data.sources.csv import csv_table
from orthoproxy.data.sources.cub import cub_table
from orthoproxy.data.sources.folder import folder_table
from orthoproxy.data.sources.icons import icons_table
from orthoproxy.data.sources.inshop import inshop_table
from orthoproxy.data.sources.sop import sop_table
from orthoproxy.data.table import assign_split, hold_out_validation, make_table
from orthoproxy.data.transforms import evaluation_transform

if TYPE_CHECKING:
    from orthoproxy.data.augmentation import training_transform
    from orthoproxy.data.datasets import TrainingImages
    from orthoproxy.data.samplers import BatchSampler

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

__getattr__ = lazy_imports(  # those that import PyTorch
    __name__, {"BatchSampler": "samplers", "TrainingImages": "datasets", "training_transform": "augmentation"}
)


def __dir__() -> list[str]:
    return __all__

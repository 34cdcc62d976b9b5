"""Labelled images for prompt learning: reading them, sampling few shots, splitting classes, transforming pixels."""

from .augmentation import AugmentedRows
from .benchmarks import (
    TASKS,
    TRANSFER_TASKS,
    PromptingTask,
    TransferTask,
    draw_of,
    find_task,
    find_tasks,
    group_means,
    load_task,
)
from .few_shot import (
    base_novel_split,
    class_counts,
    few_shot,
    published_few_shot,
    select_classes,
    stratified_split,
)
from .name_files import read_class_names
from .options import DataOptions
from .sources import load_images, load_split, load_unlabelled, with_class_names
from .transforms import EvalTransform, TrainTransform, cache_pixels, image_size
from .views import ViewTransform


__all__ = [
    "TASKS",
    "TRANSFER_TASKS",
    "AugmentedRows",
    "DataOptions",
    "EvalTransform",
    "PromptingTask",
    "TrainTransform",
    "TransferTask",
    "ViewTransform",
    "base_novel_split",
    "cache_pixels",
    "class_counts",
    "draw_of",
    "few_shot",
    "find_task",
    "find_tasks",
    "group_means",
    "image_size",
    "load_images",
    "load_split",
    "load_task",
    "load_unlabelled",
    "published_few_shot",
    "read_class_names",
    "select_classes",
    "stratified_split",
    "with_class_names",
]

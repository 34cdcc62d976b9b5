"""Training by a recipe with the stock Trainer, its callbacks, evaluation, cached image features."""

from ..tuners.base.recipe import Averaging, Recipe
from .averaging import AverageWeights
from .cached_features import RandomViews, cache_features, feature_rows
from .callbacks import ProgressBar, StepTimer, StopIfDiverged
from .checkpoints import last_checkpoint
from .distillation import DistillationRows, take_teacher, teacher_logits
from .evaluation import (
    EvalSet,
    accuracy,
    compute_metrics,
    evaluate,
    harmonic_mean,
    make_compute_metrics,
    measure,
    predict_logits,
)
from .gradient_probe import GradientProbe
from .recipe_trainer import RecipeTrainer
from .recipes import lr_schedule, lr_scheduler, make_optimizer
from .test_time import TestTimeTuning, TunedOutput, evaluate_at_test_time, tune_on_features, tune_on_views
from .trainer import TrainResult, train


__all__ = [
    "AverageWeights",
    "Averaging",
    "DistillationRows",
    "EvalSet",
    "GradientProbe",
    "ProgressBar",
    "RandomViews",
    "Recipe",
    "RecipeTrainer",
    "StepTimer",
    "StopIfDiverged",
    "TestTimeTuning",
    "TrainResult",
    "TunedOutput",
    "accuracy",
    "cache_features",
    "compute_metrics",
    "evaluate",
    "evaluate_at_test_time",
    "feature_rows",
    "harmonic_mean",
    "last_checkpoint",
    "lr_schedule",
    "lr_scheduler",
    "make_compute_metrics",
    "make_optimizer",
    "measure",
    "predict_logits",
    "take_teacher",
    "teacher_logits",
    "train",
    "tune_on_features",
    "tune_on_views",
]

"""The mean average precision, against its definition."""

from types import SimpleNamespace

import numpy as np
import pytest

from peft_vprompt.metrics import average_precisions, mean_average_precision
from peft_vprompt.training.evaluation import EvalSet, compute_metrics, evaluate
from tests.support.models import CLASS_NAMES, images


def by_definition(logits, labels):
    """The mean, over the images of a class, of the precision among those that are rated at least as high."""
    values = []
    for scores, truth in zip(logits.T, labels.T, strict=True):
        scores, truth = scores[truth != -100], truth[truth != -100]
        if (truth == 1).any():
            values.append(np.mean([truth[scores >= score].mean() for score in scores[truth == 1]]))
    return np.mean(values)


def test_is_what_it_is_by_definition():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 6)).round(1)  # with ties
    labels = rng.choice([0, 1, -100], p=[0.6, 0.3, 0.1], size=(50, 6))
    labels[:, 2] = np.where(labels[:, 2] == 1, 0, labels[:, 2])
    assert mean_average_precision(logits, labels) == pytest.approx(by_definition(logits, labels))
    assert np.isnan(average_precisions(logits, labels)).tolist() == [False, False, True, False, False, False]
    assert mean_average_precision(labels, labels) == 1
    prediction = SimpleNamespace(predictions=logits, label_ids=labels)
    assert compute_metrics(prediction) == {"map": 100 * mean_average_precision(logits, labels)}


def test_labels_that_are_none_are_refused():
    logits = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"labels of 1, 0 or -100.*\[2, 3\].*values \[0.2, 0.5\]"):
        mean_average_precision(logits, np.array([[0.5, 0.2, 0.5], [0.2, 0.2, 0.5]]))
    with pytest.raises(ValueError, match=r"shape \[2, 2\]"):
        mean_average_precision(logits, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="without any 1"):
        mean_average_precision(logits, logits)


def test_a_model_is_evaluated_by_it(make):
    from peft import get_peft_model

    from tests.support.models import disturb, tiny_clip

    labels = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 0, 1, 0], [0, 1, 0, 0, 1]])
    rows = [{"pixel_values": images()[i], "labels": labels[i].astype(np.float32)} for i in range(4)]
    model = disturb(get_peft_model(tiny_clip(), make("context_opt", "class-specific")))
    import torch

    with torch.no_grad():
        logits = model(pixel_values=images()).logits.numpy()
    found = evaluate(model, {"all": EvalSet(rows, CLASS_NAMES)})
    assert found == {"all": pytest.approx(100 * by_definition(logits, labels))}
    # A test set with some of the adapter's classes says nothing of the others.
    some = [{**row, "labels": row["labels"][[3, 0]]} for row in rows]
    found = evaluate(model, {"all": EvalSet(some, [CLASS_NAMES[3], CLASS_NAMES[0]])})
    assert found == {"all": pytest.approx(100 * by_definition(logits[:, [0, 3]], labels[:, [0, 3]]))}


def test_one_list_of_scores_is_refused():
    with pytest.raises(ValueError, match=r"Received: shape \[2\]"):
        mean_average_precision([0.1, 0.9], [0, 1])

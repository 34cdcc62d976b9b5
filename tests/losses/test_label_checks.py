"""Labels that are refused by name, in the classification call and in the losses, and those that count for nothing."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from peft_vprompt.losses import LOSSES, CrossEntropy
from peft_vprompt.losses.classification import make_loss
from tests.support.models import CLASS_NAMES, images, labels, tiny_clip


CLASSES = len(CLASS_NAMES)
NONE_COUNTS = torch.full((4,), -100)


@pytest.fixture
def model(make):
    return get_peft_model(tiny_clip(), make("context_opt", "end")).train()


def rows(*values):
    return torch.tensor(values, dtype=torch.float).repeat(4, 1)


#: Label matrices that are no probabilities.
BAD = {
    "multi-hot": rows(1, 1, 0, 1, 0),
    "no class": rows(0, 0, 0, 0, 0),
    "negative": rows(1, 0, 0, 0, -5),
    "negative that sum to one": rows(1.5, -0.5, 0, 0, 0),
    "one bad row": torch.cat([F.one_hot(torch.tensor([0, 1, 2]), CLASSES).float(), rows(1, 1, 0, 0, 0)[:1]]),
    "nan": rows(1, float("nan"), 0, 0, 0),
    "infinite": rows(1, float("inf"), 0, 0, 0),
    "half precision": rows(1, 1, 0, 0, 0).half(),
    "percent": rows(50, 50, 0, 0, 0),
    "whole numbers": rows(1, 1, 0, 0, 0).long(),
    "small whole numbers": rows(1, 0, 0, 0, 0).to(torch.uint8),
    "booleans": rows(1, 0, 0, 0, 0).bool(),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_several_classes_for_an_image_are_refused(bad, model):
    with pytest.raises(ValueError, match="Multi-label classification.* has to be asked for: .*Received: "):
        model(pixel_values=images(), labels=bad)
    for name in LOSSES:
        with pytest.raises(ValueError, match="Multi-label classification.* has to be asked for: .*Received: "):
            make_loss(name)(torch.zeros(4, CLASSES), bad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_probabilities_of_any_precision_pass(dtype, model):
    shares = torch.rand(4, CLASSES, generator=torch.Generator().manual_seed(0)).softmax(-1).to(dtype)
    expected = F.cross_entropy(model(pixel_values=images()).logits, shares.float())
    torch.testing.assert_close(model(pixel_values=images(), labels=shares).loss, expected)
    assert CrossEntropy()(torch.zeros(4, CLASSES), shares).isfinite()


INTEGERS = ["int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_class_numbers_of_any_integer_type(dtype, model):
    expected = model(pixel_values=images(), labels=labels()).loss
    numbers = labels().to(getattr(torch, dtype))
    for given in (numbers, labels().numpy().astype(dtype)):
        assert torch.equal(model(pixel_values=images(), labels=given).loss, expected)
    logits = model(pixel_values=images()).logits
    assert torch.equal(CrossEntropy()(logits, numbers), CrossEntropy()(logits, labels()))


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (torch.tensor([0.0, 1.0, 2.0, 3.0]), r"whole with labels.long\(\)"),
        (torch.tensor([True, False, True, False]), r"one integer label per image, \[4\].*torch.bool"),
        (np.array([0, 1, 2, 250], dtype=np.uint8), "labels from 0 to 250"),
        (torch.zeros(4, 1, dtype=torch.long), r"\[4, 1\]"),
        (torch.zeros(2, 2, CLASSES), r"\[2, 2, 5\]"),
        (torch.tensor(1), r"shape \[\]"),
        (rows(0.5, 0.5)[:, :2], r"\[4, 2\]"),
    ],
)
def test_other_labels_are_refused(bad, match, model):
    with pytest.raises(ValueError, match=match):
        model(pixel_values=images(), labels=bad)


def test_where_no_label_counts_the_loss_is_zero_with_gradients(model):
    loss = model(pixel_values=images(), labels=NONE_COUNTS).loss
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert loss == 0 and all(bool((g == 0).all()) for g in gradients)
    for name in LOSSES:
        logits = torch.randn(4, CLASSES, requires_grad=True)
        for divisor in (None, 0, torch.tensor(0)):
            loss = make_loss(name)(logits, NONE_COUNTS, divisor)
            (gradient,) = torch.autograd.grad(loss, logits)
            assert loss == 0 and bool((gradient == 0).all()), (name, divisor)


def test_labels_that_count_decide_alone_and_exactly(model):
    some = torch.where(torch.arange(4) < 2, labels(), -100)
    logits = model(pixel_values=images()).logits
    assert torch.equal(model(pixel_values=images(), labels=some).loss, F.cross_entropy(logits, some))


def test_the_trainer_goes_on_over_a_batch_that_does_not_count(model, tmp_path):
    data = [{"pixel_values": x, "labels": -100} for x in images()]
    arguments = TrainingArguments(str(tmp_path), max_steps=2, report_to="none", use_cpu=True, save_strategy="no")
    Trainer(model, arguments, train_dataset=data).train()
    assert all(bool(p.isfinite().all()) for p in model.parameters())

"""The sigmoid loss: against torch's own, by hand, and what it refuses."""

import pytest
import torch
from torch.nn import functional as F
from transformers.modeling_outputs import ImageClassifierOutput

from peft_vprompt.losses import BinaryCrossEntropy
from peft_vprompt.losses.regularizers import binary_divergence


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -200.0]])
LABELS = torch.tensor([[1, 0, 1], [0, 0, 1]])


@pytest.mark.parametrize("as_type", [torch.long, torch.uint8, torch.bool, torch.float32, torch.float16])
def test_is_the_mean_of_torchs_loss(as_type):
    expected = F.binary_cross_entropy_with_logits(LOGITS, LABELS.float())
    torch.testing.assert_close(BinaryCrossEntropy()(LOGITS, LABELS.to(as_type)), expected)
    each = BinaryCrossEntropy("none")(LOGITS, LABELS)
    torch.testing.assert_close(each[0, 0], torch.tensor(2.0).exp().reciprocal().log1p())
    torch.testing.assert_close(BinaryCrossEntropy("sum")(LOGITS, LABELS), each.sum())


def test_unknown_classes_count_for_nothing():
    logits = LOGITS.clone().requires_grad_()
    labels = torch.tensor([[1, -100, 0], [-100, -100, -100]])
    loss = BinaryCrossEntropy()(logits, labels)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(LOGITS[0, [0, 2]], torch.tensor([1.0, 0.0])))
    loss.backward()
    assert (logits.grad != 0).tolist() == [[True, False, True], [False] * 3]
    nothing = BinaryCrossEntropy()(logits, torch.full((2, 3), -100))
    assert nothing == 0 and torch.autograd.grad(nothing, logits)[0].abs().max() == 0


def test_accumulated_batches_add_up():
    output = [ImageClassifierOutput(logits=LOGITS[i : i + 1]) for i in range(2)]
    for one in output:
        one["aux_loss"] = torch.tensor(0.5)
    labels = torch.tensor([[1, 0, 1], [0, -100, 1]])
    parts = [BinaryCrossEntropy()(one, labels[i : i + 1], num_items_in_batch=5) for i, one in enumerate(output)]
    whole = BinaryCrossEntropy()(LOGITS, labels)
    torch.testing.assert_close(sum(parts), whole + 0.5)


def test_half_precision_is_computed_in_single():
    assert BinaryCrossEntropy()(LOGITS.half(), LABELS).dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.tensor([0, 2]), r"labels \[2, 3\].*shape \[2\].*one_hot"),
        (LABELS[:, :2], r"shape \[2, 2\]"),
        (LABELS * 2, "row 0 with values from 0 to 2"),
        (torch.tensor([[0, 1, 0], [1, 0, -1]]), "row 1 with values from -1 to 1"),
        (torch.full((2, 3), float("nan")), "row 0 with values from nan"),
    ],
)
def test_other_labels_are_refused(labels, match):
    with pytest.raises(ValueError, match=match):
        BinaryCrossEntropy()(LOGITS, labels)


def test_unknown_reductions_are_refused():
    with pytest.raises(ValueError, match="reduction to be one of.*Received: reduction='max'"):
        BinaryCrossEntropy("max")


def test_divergence_is_that_of_coins():
    ours, wanted = torch.tensor([0.3, -40.0]), torch.tensor([-1.2, 40.0])
    coins = [torch.distributions.Bernoulli(logits=x.double()) for x in (wanted, ours)]
    torch.testing.assert_close(
        binary_divergence(ours.double(), wanted.double()), torch.distributions.kl_divergence(*coins)
    )

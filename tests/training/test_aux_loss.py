"""`aux_loss` of a model's output in the losses, in accumulated batches and in the gradient probe."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput

from peft_vprompt.losses import LOSSES, CrossEntropy, make_loss, read_aux_loss
from peft_vprompt.training import GradientProbe


every_loss = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture
def logits():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    """Of five samples one does not count."""
    return torch.tensor([0, 3, -100, 1, 2])


def output(logits, aux_loss, kind=SimpleNamespace):
    return kind(logits=logits, aux_loss=aux_loss)


@every_loss
class TestReductions:
    @pytest.mark.parametrize("kind", [SimpleNamespace, dict])
    def test_the_mean_and_it(self, name, kind, logits, labels):
        loss, aux_loss = make_loss(name), torch.tensor(0.7)
        torch.testing.assert_close(loss(output(logits, aux_loss, kind), labels), loss(logits, labels) + 0.7)

    @pytest.mark.parametrize("reduction", ["sum", "none"])
    def test_each_sample_that_counts_and_it(self, name, reduction, logits, labels):
        loss = make_loss(name, reduction=reduction)
        each = torch.tensor([0.7, 0.7, 0.0, 0.7, 0.7])
        expected = loss(logits, labels) + (each.sum() if reduction == "sum" else each)
        torch.testing.assert_close(loss(output(logits, torch.tensor(0.7)), labels), expected)

    def test_distributions_over_the_labels(self, name, logits):
        shares, loss = torch.rand(5, 4).softmax(-1), make_loss(name)
        found = loss(output(logits, torch.tensor(0.7)), shares, num_items_in_batch=2 * shares.numel())
        torch.testing.assert_close(found, loss(logits, shares, num_items_in_batch=2 * shares.numel()) + 0.35)

    def test_class_weights_do_not_weigh_it(self, name, logits, labels):
        loss = make_loss(name, weight=[1.0, 2.0, 3.0, 4.0])
        torch.testing.assert_close(loss(output(logits, torch.tensor(0.7)), labels), loss(logits, labels) + 0.7)

    def test_without_it_nothing_changes(self, name, logits, labels):
        loss = make_loss(name)
        for plain in (output(logits, None), SimpleNamespace(logits=logits), {"logits": logits}):
            assert torch.equal(loss(plain, labels), loss(logits, labels))


def test_accumulated_batches_add_up_to_the_mean(logits, labels):
    """The sum over micro batches, of two and three samples, of a regulariser that is the mean over its samples."""
    loss, counted = CrossEntropy(), int((labels != -100).sum())
    of_sample = torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6])
    total = torch.zeros(())
    for part in (slice(0, 2), slice(2, 5)):
        of_part = of_sample[part][labels[part] != -100].mean()
        total = total + loss(output(logits[part], of_part), labels[part], num_items_in_batch=torch.tensor(counted))
    expected = F.cross_entropy(logits, labels) + of_sample[labels != -100].mean()
    torch.testing.assert_close(total, expected)


def test_its_gradient_is_the_share_of_the_batch(logits, labels):
    aux_loss = torch.tensor(0.7, requires_grad=True)
    CrossEntropy()(output(logits, aux_loss), labels, num_items_in_batch=16).backward()
    assert aux_loss.grad == pytest.approx(4 / 16)


def test_half_precision_is_added_in_float32(logits, labels):
    aux_loss = torch.tensor(100.0, dtype=torch.bfloat16)
    found = CrossEntropy()(output(logits.bfloat16(), aux_loss), labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, CrossEntropy()(logits.bfloat16(), labels) + 100)


@dataclass
class Output(ModelOutput):
    """An output as transformers has them, which are dictionaries without the fields that are None."""

    logits: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None


def test_it_is_read_from_every_kind_of_output(logits):
    aux_loss = torch.tensor(1.0)
    assert read_aux_loss(logits) is None
    assert read_aux_loss(Output(logits=logits)) is None
    assert read_aux_loss(Output(logits=logits, aux_loss=aux_loss)) is aux_loss


class Regularised(torch.nn.Module):
    """A linear classifier; half the squared length of its weights is given where it is asked for."""

    class_name_classifier = "here"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(6, 3, bias=False)

    def forward(self, pixel_values, output_aux_loss=False):
        asked = self.training or output_aux_loss
        return output(self.linear(pixel_values), self.linear.weight.square().sum() / 2 if asked else None)


class Plain(Regularised):
    """A model that has no regularisers and takes no such keyword."""

    class_name_classifier = None

    def forward(self, pixel_values):
        return super().forward(pixel_values)


@pytest.mark.parametrize("kind", [Regularised, Plain])
def test_the_gradient_probe_measures_it(kind):
    model, generator = kind(), torch.Generator().manual_seed(1)
    rows = [{"pixel_values": torch.randn(6, generator=generator), "labels": i % 3} for i in range(8)]
    probe = GradientProbe(rows, [1, 2, 5])
    probe.on_train_begin(None, None, None, model=model)

    parts = [[1, 2, 5], [0, 3, 4, 6, 7]]
    norms = []
    for part in parts:
        pixels = torch.stack([rows[i]["pixel_values"] for i in part])
        loss = F.cross_entropy(model.linear(pixels), torch.tensor([rows[i]["labels"] for i in part]))
        (gradient,) = torch.autograd.grad(loss, [model.linear.weight])
        gradient = gradient + model.linear.weight.detach() if kind is Regularised else gradient
        norms.append(gradient.norm().item())
    found = probe.history[0]
    assert [found["noisy_norm"], found["clean_norm"]] == pytest.approx(norms, rel=1e-5)
    assert model.training

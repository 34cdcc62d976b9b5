"""Losses: equal to the authors' values and gradients, finite everywhere, and fit for the Trainer."""

import json

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

from peft_vprompt import ContextOptConfig
from peft_vprompt.losses.classification import (
    LOSSES,
    CrossEntropy,
    GeneralizedCrossEntropy,
    NCEandRCE,
    NormalizedCrossEntropy,
    PHuberCrossEntropy,
    PHuberGeneralizedCrossEntropy,
    ReverseCrossEntropy,
    SymmetricCrossEntropy,
    Unhinged,
    make_loss,
)
from tests.support.models import CLASS_NAMES, images, labels, tiny_clip
from tests.support.training_cases import dataset


every_loss = pytest.mark.parametrize("name", LOSSES)


def golden_loss(name, options):
    """The loss of a reference case; their label smoothing spreads over the other classes only."""
    kinds = {
        "ce": lambda: CrossEntropy(),
        "gce": lambda: GeneralizedCrossEntropy(options["q"], epsilon=options["eps"]),
        "unhinged": lambda: Unhinged(),
        "phuber_ce": lambda: PHuberCrossEntropy(options["tau"]),
        "phuber_gce": lambda: PHuberGeneralizedCrossEntropy(options["q"], options["tau"]),
        "rce": lambda: ReverseCrossEntropy(),
        "sce": lambda: SymmetricCrossEntropy(options["alpha"], options["beta"]),
        "nce": lambda: NormalizedCrossEntropy(),
        "nce_rce": lambda: NCEandRCE(options["alpha"], options["beta"]),
        "label_smooth": lambda: CrossEntropy(label_smoothing=options["smoothing"] * 7 / 6),
    }
    return kinds[max((kind for kind in kinds if name.startswith(kind)), key=len)]()


@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize("regime", ["mild", "clip", "extreme"])
def test_golden_values_and_gradients(regime, dtype, shared):
    tensors = load_file(shared / "golden/ptnl/losses.safetensors")
    cases = json.loads((shared / "golden/ptnl/losses.json").read_text())["losses"]
    targets = tensors[f"{regime}.{dtype}.targets"]
    for name, options in cases.items():
        logits, loss = tensors[f"{regime}.{dtype}.logits"].clone().requires_grad_(), golden_loss(name, options)
        loss(logits, targets).backward()
        loss.reduction = "none"
        # The float64 reference also for float32 inputs: with small q the authors' own float32 values cancel.
        expected, gradient = (tensors[f"{regime}.f64.{name}.{what}"] for what in ("per_sample", "grad"))
        torch.testing.assert_close(loss(logits, targets).double(), expected, rtol=1e-6, atol=1e-6, msg=name)
        torch.testing.assert_close(logits.grad.double(), gradient, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["ce", "gce_q0.7"])
def test_half_precision_is_computed_in_float32(name, shared):
    tensors = load_file(shared / "golden/ptnl/losses.safetensors")
    logits, targets = tensors["clip.f16.logits"], tensors["clip.f16.targets"]
    loss = golden_loss(name, {"q": 0.7, "eps": 1e-6})
    loss.reduction = "none"
    assert loss(logits, targets).dtype == torch.float32
    assert torch.equal(loss(logits, targets), loss(logits.float(), targets))
    torch.testing.assert_close(
        loss(logits, targets), tensors[f"clip.f16.{name}.per_sample"].float(), rtol=2e-3, atol=1e-3
    )


@every_loss
def test_autocast_changes_nothing(name):
    logits, loss = 10 * torch.randn(6, 5), make_loss(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(logits, torch.arange(6) % 5)
    assert torch.equal(inside, loss(logits, torch.arange(6) % 5))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_finite_at_certainty(name, dtype):
    """At p = 1 for the label, and at p = 0, also where exp underflows."""
    for size in (1e2, 1e4):
        logits = torch.tensor([[size, 0, 0], [0, size, 0], [-size, 0, 0]], dtype=dtype, requires_grad=True)
        loss = make_loss(name)(logits, torch.tensor([0, 0, 0]))
        loss.backward()
        assert bool(torch.isfinite(loss)) and bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("name", ["ce", "gce", "unhinged", "phuber-ce", "phuber-gce"])
def test_a_class_that_is_ruled_out_gives_no_nan(name):
    logits = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
    for target in (torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.0]])):
        (gradient,) = torch.autograd.grad(make_loss(name)(logits, target), logits)
        assert bool(torch.isfinite(gradient).all())


@every_loss
def test_gradcheck(name):
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: make_loss(name)(x, torch.arange(6) % 5), logits)
    shares = torch.rand(6, 5, dtype=torch.float64).softmax(-1)
    assert torch.autograd.gradcheck(lambda x: make_loss(name)(x, shares), logits)


@every_loss
def test_one_hot_shares_are_labels(name):
    logits, target = 3 * torch.randn(8, 5), torch.arange(8) % 5
    weight = torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0])
    one_hot = F.one_hot(target, 5).float()
    for options in ({}, {"weight": weight}):
        loss = make_loss(name, reduction="none", **options)
        torch.testing.assert_close(loss(logits, one_hot), loss(logits, target))


def test_cross_entropy_is_torchs():
    logits, weight = torch.randn(8, 5), torch.rand(5) + 0.1
    target, shares = torch.tensor([0, 1, -100, 3, 4, 0, -100, 2]), torch.rand(8, 5).softmax(-1)
    for smoothing in (0.0, 0.2):
        loss = CrossEntropy(label_smoothing=smoothing)
        torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target, label_smoothing=smoothing))
        torch.testing.assert_close(loss(logits, shares), F.cross_entropy(logits, shares, label_smoothing=smoothing))
    torch.testing.assert_close(CrossEntropy(weight=weight)(logits, target), F.cross_entropy(logits, target, weight))
    torch.testing.assert_close(CrossEntropy(weight=weight)(logits, shares), F.cross_entropy(logits, shares, weight))


def test_gce_between_cross_entropy_and_unhinged():
    logits, target = torch.randn(8, 5), torch.arange(8) % 5
    torch.testing.assert_close(GeneralizedCrossEntropy(0)(logits, target), CrossEntropy()(logits, target))
    torch.testing.assert_close(GeneralizedCrossEntropy(1e-6)(logits, target), CrossEntropy()(logits, target))
    torch.testing.assert_close(GeneralizedCrossEntropy(1)(logits, target), Unhinged()(logits, target))
    assert GeneralizedCrossEntropy().q == 0.7 and GeneralizedCrossEntropy().epsilon == 0


@pytest.mark.parametrize("loss", [PHuberCrossEntropy(tau=3), PHuberGeneralizedCrossEntropy(q=0.5, tau=3)])
def test_phuber_is_continuous_with_its_slope(loss):
    edge = 1 / 3 if isinstance(loss, PHuberCrossEntropy) else 3 ** (1 / (0.5 - 1))
    p = torch.tensor([edge - 1e-6, edge + 1e-6], dtype=torch.float64, requires_grad=True)
    values = loss.of_log_p(p.log())
    (slope,) = torch.autograd.grad(values.sum(), p)
    torch.testing.assert_close(values[0], values[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(slope, torch.full_like(slope, -3), atol=1e-3, rtol=0)


@every_loss
def test_reductions_ignored_samples_and_the_trainers_count(name):
    logits, target = torch.randn(6, 5), torch.tensor([0, 7, 2, 3, 7, 1])
    each = make_loss(name, ignore_index=7, reduction="none")(logits, target)
    kept = make_loss(name, reduction="none")(logits[target != 7], target[target != 7])
    assert each[target == 7].tolist() == [0, 0]
    torch.testing.assert_close(each[target != 7], kept)
    torch.testing.assert_close(make_loss(name, ignore_index=7, reduction="sum")(logits, target), kept.sum())
    mean = make_loss(name, ignore_index=7)
    torch.testing.assert_close(mean(logits, target), kept.mean())
    output = ImageClassifierOutput(logits=logits)
    for given in (output, {"logits": logits}):
        torch.testing.assert_close(mean(given, target, num_items_in_batch=torch.tensor(8)), kept.sum() / 8)
    assert mean(logits, torch.full((6,), 7)).item() == 0


def test_the_stock_trainer_takes_every_way_of_accumulating(tokenizer_path, tmp_path):
    """Four batches of one sample make the step of one batch of four."""

    def step(batch_size, accumulate):
        config = ContextOptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
        torch.manual_seed(1)
        model = get_peft_model(tiny_clip(), config)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=batch_size, report_to="none",
            gradient_accumulation_steps=accumulate, max_grad_norm=0, learning_rate=0.1, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        Trainer(
            model=model, args=arguments, train_dataset=dataset(4), optimizers=(optimizer, None),
            compute_loss_func=GeneralizedCrossEntropy(q=0.7),
        ).train()  # fmt: skip
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    one, four = step(4, 1), step(1, 4)
    torch.testing.assert_close(four, one, rtol=0, atol=1e-6)
    model = get_peft_model(
        tiny_clip(), ContextOptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    )
    output = model(pixel_values=images())
    assert GeneralizedCrossEntropy()(output, labels()).requires_grad


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: GeneralizedCrossEntropy(q=1.5), "q from 0 to 1. Received: q=1.5"),
        (lambda: GeneralizedCrossEntropy(q="0.7"), "Received: q='0.7'"),
        (lambda: GeneralizedCrossEntropy(epsilon=-1), "epsilon from 0 to 1"),
        (lambda: PHuberCrossEntropy(tau=1), "tau > 1. Received: tau=1"),
        (lambda: PHuberGeneralizedCrossEntropy(q=1), "strictly between 0 and 1. Received: q=1. Use PHuberCross"),
        (lambda: SymmetricCrossEntropy(alpha=-1), "alpha >= 0. Received: alpha=-1"),
        (lambda: make_loss("sce", alpha=float("inf")), "alpha >= 0 and at most 1,000,000. Received: alpha=inf"),
        (lambda: make_loss("nce-rce", beta=float("nan")), "beta >= 0.*Received: beta=nan"),
        (lambda: make_loss("phuber-ce", tau=10**400), "tau > 1 and at most 1,000,000. Received: tau=1000"),
        (lambda: make_loss("phuber-gce", tau=float("inf")), "tau > 1.*Received: tau=inf"),
        (lambda: make_loss(["ce"]), r"No loss \['ce'\]"),
        (lambda: CrossEntropy(ignore_index=1.5), "ignore_index to be an integer. Received: ignore_index=1.5"),
        (lambda: CrossEntropy(weight=[1.0, float("nan")]), r"one weight >= 0.*Received: weight=\[1.0, nan\]"),
        (lambda: CrossEntropy(weight=[1.0, float("inf")]), "one weight >= 0 for each class, of at most 1,000,000"),
        (lambda: CrossEntropy(weight=["a"]), r"one weight >= 0.*Received: weight=\['a'\]"),
        (lambda: CrossEntropy(weight=1.0), "one weight >= 0.*Received: weight=1.0"),
        (lambda: CrossEntropy(label_smoothing=2), "label_smoothing from 0 to 1"),
        (lambda: CrossEntropy(reduction="max"), "mean.*Received: reduction='max'"),
        (lambda: CrossEntropy(weight=torch.tensor([-1.0])), "one weight >= 0 for each class"),
        (lambda: CrossEntropy(weight=torch.ones(4))(torch.ones(2, 3), torch.zeros(2).long()), "3 class weights.*: 4"),
        (lambda: CrossEntropy()(torch.ones(2, 3), torch.tensor([0, 3])), r"from 0 to 2.*Received: \[3\]"),
        (lambda: CrossEntropy()(torch.ones(2, 3), torch.zeros(3).long()), r"logits \[2, 3\], labels \[3\]"),
        (lambda: CrossEntropy()(torch.ones(2, 3), torch.zeros(2)), "class numbers.*torch.float32"),
        (lambda: CrossEntropy()(torch.ones(2, 3), -torch.ones(2, 3)), "has to be asked for.*row 0 with values from -1 to -1"),
        (lambda: NormalizedCrossEntropy()(torch.ones(2, 1), torch.zeros(2).long()), "at least two classes"),
        (lambda: make_loss("focal"), "No loss 'focal'. Choose one of: ce, gce"),
        (lambda: make_loss("ce", q=0.7), "The loss ce has no option q. It has: label_smoothing"),
    ],
)  # fmt: skip
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("accumulate", (1, 2))
def test_the_stock_trainer_takes_distributions(accumulate, tokenizer_path, tmp_path):
    config = ContextOptConfig(num_virtual_tokens=4, class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    shares = torch.rand(8, len(CLASS_NAMES), generator=torch.Generator().manual_seed(0)).softmax(-1)
    rows = [{"pixel_values": x, "labels": share} for x, share in zip(images(8), shares, strict=True)]
    model = get_peft_model(tiny_clip(), config).eval()
    with torch.no_grad():
        expected = float(F.cross_entropy(model(pixel_values=images(8)).logits, shares))
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        per_device_train_batch_size=8 // accumulate,
        gradient_accumulation_steps=accumulate,
        max_steps=1,
        learning_rate=0.0,
        logging_steps=1,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, compute_loss_func=CrossEntropy())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert float(logged) == pytest.approx(expected, rel=1e-3)

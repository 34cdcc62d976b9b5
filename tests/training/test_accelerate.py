"""An Accelerate loop, against the plain torch loop."""

import functools

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from tests.support.training_cases import (
    PASS_BY_PASS,
    dataset,
    every_case,
    first_cases,
    gradients,
    trained,
)


pytestmark = pytest.mark.usefixtures("forgetful")


def parts(model, batch_size: int, images: int) -> tuple:
    """Model, optimizer, data loader and schedule, as `Accelerator.prepare` takes them."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    loader = DataLoader(dataset(images).remove_columns("photographer"), batch_size)
    return model.train(), optimizer, loader, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)


def plain_loop(model, optimizer, loader, schedule) -> dict[str, torch.Tensor]:
    """Two epochs with torch alone."""
    for batch in [*loader, *loader]:
        model(**batch).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return trained(model)


def accelerate_epoch(accelerator: Accelerator, model, optimizer, loader, schedule) -> list[float]:
    """One epoch with Accelerate; the losses of its batches."""
    losses = []
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@every_case
def test_the_loop_equals_plain_torch(case, tokenizer_path):
    model, accelerator = case.build(tokenizer_path), Accelerator(cpu=True)
    prepared = accelerator.prepare(*parts(model, 4, images=10))
    for _ in range(2):
        accelerate_epoch(accelerator, *prepared)
    expected = plain_loop(*parts(case.build(tokenizer_path), 4, images=10))
    torch.testing.assert_close(trained(model), expected, rtol=0, atol=0)


@first_cases
def test_four_accumulated_batches_of_one_are_one_of_four(case, tokenizer_path):
    if case.method in PASS_BY_PASS:
        pytest.skip(PASS_BY_PASS[case.method])
    build = functools.partial(case.build, tokenizer_path, dtype=torch.float64)
    model, accelerator = build(), Accelerator(cpu=True, gradient_accumulation_steps=4)
    prepared = accelerator.prepare(*parts(model, 1, images=8))
    for _ in range(2):
        accelerate_epoch(accelerator, *prepared)
    expected = plain_loop(*parts(build(), 4, images=8))
    torch.testing.assert_close(trained(model), expected, rtol=0, atol=1e-6)


@first_cases
def test_a_saved_state_goes_on_where_it_was(case, tokenizer_path, tmp_path):
    accelerator, model = Accelerator(cpu=True), case.build(tokenizer_path)
    prepared = accelerator.prepare(*parts(model, 4, images=8))
    accelerate_epoch(accelerator, *prepared)
    accelerator.save_state(str(tmp_path))
    accelerate_epoch(accelerator, *prepared)

    second, resumed = Accelerator(cpu=True), case.build(tokenizer_path, seed=2)
    prepared = second.prepare(*parts(resumed, 4, images=8))
    second.load_state(str(tmp_path))
    accelerate_epoch(second, *prepared)
    torch.testing.assert_close(trained(resumed), trained(model), rtol=0, atol=0)


@first_cases
def test_bf16_keeps_prompts_and_gradients_in_float32(case, tokenizer_path):
    accelerator, model = Accelerator(cpu=True, mixed_precision="bf16"), case.build(tokenizer_path)
    model, optimizer, loader, _ = accelerator.prepare(*parts(model, 4, images=8))
    for batch in loader:
        loss = model(**batch).loss
        accelerator.backward(loss)
        assert torch.isfinite(loss)
        assert {g.dtype for g in gradients(accelerator.unwrap_model(model)).values()} == {torch.float32}
        optimizer.step()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@first_cases
def test_metrics_are_gathered_for_every_image(case, tokenizer_path):
    accelerator, model = Accelerator(cpu=True), case.build(tokenizer_path).eval()
    _, _, loader, _ = parts(model, 4, images=10)
    prepared, loader = accelerator.prepare(model.eval(), loader)
    gathered = []
    for batch in loader:
        with torch.no_grad():
            logits = prepared(pixel_values=batch["pixel_values"]).logits
        gathered.append(accelerator.gather_for_metrics((logits, batch["labels"])))
    logits, labels = map(torch.cat, zip(*gathered, strict=True))
    data = dataset(10)
    assert labels.tolist() == data["labels"][:].tolist()
    with torch.no_grad():
        torch.testing.assert_close(logits, model(pixel_values=data["pixel_values"][:]).logits, rtol=0, atol=1e-5)

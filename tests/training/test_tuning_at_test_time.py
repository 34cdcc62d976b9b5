"""Test-time tuning: many images together equal one image after another by the model's own call."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F

from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.training import EvalSet, TestTimeTuning, evaluate_at_test_time, tune_on_features, tune_on_views
from peft_vprompt.tuners.base import class_list
from tests.support.models import CLASS_NAMES, NEW_NAMES, disturb, images, tiny_clip


VIEWS = 6
TUNING = TestTimeTuning(confident=0.5, steps=2, learning_rate=0.01, weight_decay=0.1)
SAME = {"atol": 2e-5, "rtol": 1e-4}


def views(count, seed=0):
    """Views [count, VIEWS, 3, edge, edge] that are alike."""
    plain = images(count, seed)
    return plain[:, None] + 0.5 * images(count * VIEWS, seed + 1).unflatten(0, (count, VIEWS))


def built(make, method, case):
    return disturb(get_peft_model(tiny_clip(), make(method, case)))


def one_by_one(model, features):
    """The same with the adapter's own parameters, reset before every image."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    results, losses = [], []
    for each in features:
        optimizer = torch.optim.AdamW(parameters, TUNING.learning_rate, weight_decay=TUNING.weight_decay)
        chosen = None
        for _ in range(TUNING.steps):
            logits = model(image_features=each).logits
            if chosen is None:
                chosen = torch.distributions.Categorical(logits=logits).entropy().argsort()[:3]
            mean = logits[chosen].softmax(-1).mean(0)
            loss = -(mean * mean.log()).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        results.append(model(image_features=each[:1]).logits[0].detach())
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
    return torch.stack(results), torch.stack(losses).unflatten(0, (-1, TUNING.steps))


@pytest.mark.parametrize(
    ("method", "case"),
    [("context_opt", "middle"), ("context_opt", "class-specific"), ("context_opt", "full"), ("kgcoop", "words")],
)
def test_together_equals_one_by_one(make, method, case):
    model = built(make, method, case)
    features = F.normalize(model.encode_images(views(3).flatten(0, 1)).detach(), dim=-1).unflatten(0, (3, VIEWS))
    expected, losses = one_by_one(model, features)
    output = tune_on_features(model, features, TUNING)
    torch.testing.assert_close(output.logits, expected, **SAME)
    torch.testing.assert_close(output.loss, losses, **SAME)
    assert (output.logits - output.view_logits[:, 0]).abs().max() > 1e-3


def test_the_context_that_cocoop_makes_of_the_plain_view_is_tuned(make):
    """One image after another with CoOp, whose context is set to what the Meta-Net makes of each plain view."""
    model, coop = built(make, "cocoop", "words"), built(make, "context_opt", "words")
    features = model.encode_images(views(3).flatten(0, 1)).detach().unflatten(0, (3, VIEWS))
    made = model.class_name_classifier.adapted.text.active_prompts(image_features=features[:, 0])[0].detach()
    assert (made[0] - made[1]).abs().max() > 1e-3
    (context,) = (p for p in coop.parameters() if p.requires_grad)
    expected = []
    for start, each in zip(made, features, strict=True):
        context.data.copy_(start[None])
        expected.append(one_by_one(coop, each[None]))
    output = tune_on_features(model, features, TUNING)
    logits, losses = map(torch.cat, zip(*expected, strict=True))
    torch.testing.assert_close(output.logits, logits, **SAME)
    torch.testing.assert_close(output.loss, losses, **SAME)
    untuned = model(image_features=features[:, 0]).logits.detach()
    torch.testing.assert_close(output.view_logits[:, 0], untuned, **SAME)
    assert (output.logits - untuned).abs().max() > 1e-3
    assert all(p.grad is None for p in model.parameters())


def test_several_contexts(make):
    model = built(make, "context_opt", "end")
    many = disturb(get_peft_model(tiny_clip(), make("context_opt", "end", num_contexts=2)))
    (one,) = (p for p in model.parameters() if p.requires_grad)
    (two,) = (p for p in many.parameters() if p.requires_grad)
    with torch.no_grad():
        two.copy_(torch.cat([one, one], dim=1))
    output = tune_on_views(many, views(2), TUNING)
    single = tune_on_views(model, views(2), TUNING)
    torch.testing.assert_close(output.view_logits, single.view_logits, **SAME)
    torch.testing.assert_close(output.gradients[:, :4] * 2, single.gradients, **SAME)


@pytest.mark.parametrize(("method", "case"), [("context_opt", "end"), ("cocoop", "random")])
def test_groups_of_images_change_nothing(make, method, case, monkeypatch):
    model = built(make, method, case)
    whole = tune_on_views(model, views(4), TUNING)
    monkeypatch.setattr(class_list, "MAX_TOKEN_ROWS", 150)
    model.set_class_names(CLASS_NAMES)
    sizes = []
    texts = model.class_name_classifier.texts
    original = texts.encode_with_contexts
    monkeypatch.setattr(texts, "encode_with_contexts", lambda c, x: sizes.append(len(x)) or original(c, x))
    grouped = tune_on_views(model, views(4), TUNING, batch_size=5)
    assert max(sizes) < 4
    monkeypatch.setattr(class_list, "MAX_TOKEN_ROWS", 1)  # not even the texts of one image in one pass
    one_by_one = tune_on_views(model, views(4), TUNING)
    torch.testing.assert_close(vars(one_by_one), vars(whole), **SAME)
    torch.testing.assert_close(vars(grouped), vars(whole), **SAME)


def test_the_model_stays_and_any_mode_will_do(make):
    model = built(make, "context_opt", "end").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = tune_on_views(model, views(2), TUNING)
    with torch.inference_mode():
        output = tune_on_views(model, views(2), TUNING)
    with torch.no_grad():
        torch.testing.assert_close(tune_on_views(model, views(2), TUNING).logits, output.logits)
    torch.testing.assert_close(output.logits, expected.logits)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    # A tuned image does not depend on those beside it.
    torch.testing.assert_close(tune_on_views(model, views(2)[1:], TUNING).logits, output.logits[1:], **SAME)


def test_with_confident_views_the_prediction_gets_surer(make):
    model = built(make, "context_opt", "words")
    output = tune_on_views(model, views(3), TestTimeTuning(confident=0.5, steps=20, learning_rate=0.02))
    assert (output.loss[:, -1] < output.loss[:, 0]).all()


@pytest.mark.parametrize(
    ("method", "case"),
    [
        ("maple", "maple"),
        ("read_only_prompt", "rpo"),
        ("class_head", "random"),
        ("tcp", "random"),
    ],
)
def test_adapters_without_a_plain_context_are_refused(make, method, case):
    model = built(make, method, case)
    with pytest.raises(UnsupportedModelError, match="with other prompts. Take a CoOp adapter"):
        tune_on_views(model, views(1))


def test_what_cannot_be_tuned_is_refused(make):
    model = built(make, "context_opt", "end")
    with model.disable_adapter(), pytest.raises(UnsupportedModelError, match="that is disabled"):
        tune_on_views(model, views(1))
    with pytest.raises(ValueError, match="6 views and confident=0.1, which is less than one. Use at least 10 views"):
        tune_on_views(model, views(1))
    with pytest.raises(ValueError, match="Make them by data.ViewTransform"):
        tune_on_views(model, images(2))
    with pytest.raises(ValueError, match="Received: confident=0"):
        TestTimeTuning(confident=0)
    with pytest.raises(ValueError, match="learning_rate=nan"):
        TestTimeTuning(learning_rate=float("nan"))


def test_evaluation(make):
    model = built(make, "context_opt", "end")
    pixels = views(6)
    outputs = {}
    for name, names in {"base": CLASS_NAMES, "novel": NEW_NAMES}.items():
        model.set_class_names(names)
        outputs[name] = tune_on_views(model, pixels, TUNING)
    labels = {name: output.logits.argmax(-1).tolist() for name, output in outputs.items()}
    labels["base"][0] = (labels["base"][0] + 1) % len(CLASS_NAMES)
    sets = {
        name: EvalSet([{"pixel_values": p, "labels": y} for p, y in zip(pixels, labels[name], strict=True)], names)
        for name, names in {"base": CLASS_NAMES, "novel": NEW_NAMES}.items()
    }
    tuned, untuned = evaluate_at_test_time(model, sets, TUNING, batch_size=4)
    assert tuned == pytest.approx({"base": 500 / 6, "novel": 100.0, "hm": 2 * (500 / 6) * 100 / (500 / 6 + 100)})
    plain = np.mean((outputs["novel"].view_logits[:, 0].argmax(-1) == torch.tensor(labels["novel"])).numpy())
    assert untuned["novel"] == pytest.approx(100 * plain)
    with pytest.raises(ValueError, match="No image"):
        evaluate_at_test_time(model, {"base": EvalSet([], CLASS_NAMES)}, TUNING)

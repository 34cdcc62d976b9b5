"""The classifier over class names: features of the frozen model, further terms of the loss, other tuners below it."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel, Trainer, TrainingArguments

from peft_vprompt import KgCoOpConfig, MaPLeConfig
from peft_vprompt.losses import CrossEntropy
from peft_vprompt.losses.regularizers import Features, FrozenFeatures, TextConsistency, weighted_terms
from peft_vprompt.training.eval_classes import EvalSet, own_classes
from peft_vprompt.training.evaluation import measure_beside_zero_shot
from tests.support.models import (
    CLASS_NAMES,
    NEW_NAMES,
    disturb,
    every_config,
    images,
    labels,
    tiny_clip,
    tiny_tokenizer,
)


def plain_logits(clip: CLIPModel, names=CLASS_NAMES) -> torch.Tensor:
    """What the model itself says, with the default template."""
    tokenizer = tiny_tokenizer()
    texts = tokenizer([f"a photo of a {name}." for name in names], padding=True, return_tensors="pt")
    return clip(**texts, pixel_values=images()).logits_per_image


def frozen_features(model) -> FrozenFeatures:
    """What a further term of the loss is given for `images()`."""
    return model.class_name_classifier.frozen_features(model.encode_images(images()), {"pixel_values": images()})


@every_config
def test_frozen_features_are_those_of_the_model_without_the_adapter(method, case, make):
    model = disturb(get_peft_model(tiny_clip(), make(method, case))).train()
    frozen = frozen_features(model)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    with torch.no_grad():
        expected = plain_logits(tiny_clip())
    torch.testing.assert_close(frozen.logits, expected, atol=1e-5, rtol=1e-5)
    assert not (frozen.text.requires_grad or frozen.image.requires_grad)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert not model.class_name_classifier.adapted.vision.disable_adapters


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("trainable", [True, False])
def test_a_trained_copy_is_no_part_of_the_frozen_image_features(trainable, gradients, make, tmp_path, monkeypatch):
    model = disturb(get_peft_model(tiny_clip(), make("kgcoop", "words", modules_to_save=["visual_projection"])))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path), is_trainable=trainable).eval()
    seen = []
    term = (1.0, lambda features: seen.append(features.frozen.image) or features.image.sum())
    monkeypatch.setattr(type(loaded.base_model.method), "regularizers", lambda self, config: {"image": term})
    with torch.set_grad_enabled(gradients):
        loaded(pixel_values=images(), output_aux_loss=True)
        adapted = loaded.encode_images(images())
        with loaded.disable_adapter():
            expected = loaded.encode_images(images())
    torch.testing.assert_close(seen[0], expected, atol=1e-6, rtol=0)
    assert not torch.allclose(adapted, expected, atol=1e-3)


def test_frozen_text_is_kept_per_class_list_and_follows_the_weights(make):
    model = get_peft_model(tiny_clip(), make("kgcoop", "words"))
    classifier = model.class_name_classifier
    first = classifier.frozen_text()
    assert classifier.frozen_text() is first
    model.set_class_names(NEW_NAMES)
    assert classifier.frozen_text().shape[0] == len(NEW_NAMES)
    with torch.no_grad():
        model.get_base_model().text_projection.weight.mul_(-1)
    model.set_class_names(CLASS_NAMES)
    torch.testing.assert_close(classifier.frozen_text(), -first)


def test_a_term_is_added_in_training_alone(make):
    model = disturb(get_peft_model(tiny_clip(), make("kgcoop", "words", text_consistency_weight=3.0)))
    batch = {"pixel_values": images(), "labels": labels()}
    evaluated = model(**batch)
    assert evaluated.aux_loss is None
    trained = model.train()(**batch)
    torch.testing.assert_close(trained.logits, evaluated.logits)
    similarity = F.cosine_similarity(model.encode_classes(), model.class_name_classifier.frozen_text(), dim=-1)
    expected = 3.0 * (1 - similarity.mean())
    assert expected > 0.01
    torch.testing.assert_close(trained.aux_loss, expected)
    torch.testing.assert_close(trained.loss, evaluated.loss + expected)
    torch.testing.assert_close(model.eval()(**batch, output_aux_loss=True).loss, trained.loss)
    with model.train().disable_adapter():
        assert model(**batch).aux_loss is None


def test_a_loss_of_ours_adds_the_term(make):
    model = disturb(get_peft_model(tiny_clip(), make("kgcoop", "words"))).train()
    output = model(pixel_values=images())
    torch.testing.assert_close(CrossEntropy()(output, labels()), model(pixel_values=images(), labels=labels()).loss)


def test_the_stock_trainer_gathers_logits_alone(make, tmp_path):
    model = disturb(get_peft_model(tiny_clip(), make("kgcoop", "words"))).train()
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(images(6), labels(6), strict=True)]
    arguments = TrainingArguments(str(tmp_path), report_to="none", per_device_eval_batch_size=4, max_steps=1)
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    predicted = trainer.predict(rows)
    assert predicted.predictions.shape == (6, len(CLASS_NAMES))
    with torch.no_grad():
        expected = F.cross_entropy(torch.from_numpy(predicted.predictions), labels(6))
    assert predicted.metrics["test_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_terms_are_weighted_by_name():
    text = torch.eye(3)
    features = Features(torch.eye(3), text, text, type("Frozen", (), {"text": -text, "image": text, "logits": text})())
    terms = weighted_terms({"far": (0.5, TextConsistency()), "none": (0.0, TextConsistency())}, features)
    assert terms["far"] == pytest.approx(1.0) and terms["none"] == 0


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"text_consistency_weight": -1}, "text_consistency_weight to be a finite number >= 0. Received: .*-1"),
        ({"text_consistency_weight": float("nan")}, "finite number >= 0"),
        ({"text_consistency_weight": True}, "finite number >= 0"),
        ({"frozen_template": "a photo"}, "exactly one '{}'.*frozen_template='a photo'"),
        ({"frozen_template": []}, "Expected a template or a list of them"),
    ],
)
def test_values_that_are_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        KgCoOpConfig(**fields)


def test_names_are_saved_as_trained_and_not_as_evaluated(make, tmp_path):
    model = get_peft_model(tiny_clip(), make("context_opt", "end"))
    model.eval()
    model.set_class_names(NEW_NAMES)
    model(pixel_values=images(), labels=labels() % 3).loss.backward()
    with torch.no_grad():
        model.train()(pixel_values=images())
    assert model.peft_config["default"].class_names == CLASS_NAMES
    model(pixel_values=images())
    assert model.peft_config["default"].class_names == NEW_NAMES


# ---- other tuners -----------------------------------------------------------------------------------------------------


def lora(**options) -> LoraConfig:
    config = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False} | options
    return LoraConfig(task_type="IMAGE_CLS", **config)


def test_a_lora_of_both_towers_is_trained_on_class_names():
    torch.manual_seed(0)
    model = get_peft_model(tiny_clip(), lora()).train()
    model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
    expected = plain_logits(model.get_base_model())
    output = model(pixel_values=images(), labels=labels())
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(output.loss, parameters)
    theirs = torch.autograd.grad(F.cross_entropy(expected, labels()), parameters)
    for mine, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-4)
        assert bool(plain.any())


def test_the_stock_trainer_trains_a_lora_alike_in_one_step_and_in_accumulated_ones(tmp_path):
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(images(), labels(), strict=True)]
    results = []
    for size, steps in ((4, 1), (1, 4)):
        torch.manual_seed(0)
        model = get_peft_model(tiny_clip(), lora())
        model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        quiet = {"output_dir": tmp_path, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
        plain = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "max_grad_norm": 0.0, "use_cpu": True}
        trainer = Trainer(
            model, TrainingArguments(**settings, **quiet, **plain), train_dataset=rows, eval_dataset=rows
        )
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0
        results.append({name: p.detach() for name, p in model.named_parameters() if name in before})
        assert not any(torch.equal(before[name], value) for name, value in results[-1].items())
        assert type(model.unload()) is CLIPModel
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=1e-6, rtol=1e-5)


def test_a_lora_is_saved_switched_off_and_unloaded(tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(tiny_clip(), lora()).eval()
    model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
    with torch.no_grad():
        logits, plain = model(pixel_values=images()).logits, plain_logits(tiny_clip())
        with model.disable_adapter():
            torch.testing.assert_close(model(pixel_values=images()).logits, plain, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(logits, plain, atol=1e-3)
        torch.testing.assert_close(
            frozen_features(model).logits,
            plain,
            atol=1e-5,
            rtol=1e-5,
        )
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tiny_clip(), str(tmp_path)).eval()
        loaded.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
        torch.testing.assert_close(loaded(pixel_values=images()).logits, logits)
        unloaded = model.unload()
        torch.testing.assert_close(plain_logits(unloaded), plain, rtol=0, atol=0)
    assert {type(m.config) for m in unloaded.modules() if hasattr(m, "config")} == {
        type(m.config) for m in tiny_clip().modules() if hasattr(m, "config")
    }
    assert not any(hasattr(getattr(m, "config", None), "plain_config") for m in unloaded.modules())


def test_copies_have_classifiers_of_their_own(make):
    model = disturb(get_peft_model(tiny_clip(), make("maple", "maple")))
    with torch.no_grad():
        expected = model(pixel_values=images()).logits
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other.class_name_classifier.model is other
            other.set_class_names(NEW_NAMES)
            disturb(other)
            assert torch.equal(model(pixel_values=images()).logits, expected)


class FineCLIP(CLIPModel):
    """A user's own subclass."""


def test_a_subclass_of_a_known_model_is_known(make):
    torch.manual_seed(0)
    base = FineCLIP(tiny_clip().config).eval()
    base.load_state_dict(tiny_clip().state_dict())
    config = MaPLeConfig(prompt_depth=2, class_names=CLASS_NAMES)
    config.tokenizer_name_or_path = make("maple", "maple").tokenizer_name_or_path
    torch.manual_seed(1)
    model = get_peft_model(base, config).eval()
    known = tiny_clip()
    torch.manual_seed(1)
    plain = get_peft_model(known, config).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=images()).logits, plain(pixel_values=images()).logits)
    assert type(model.unload()) is FineCLIP


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch's attention
@pytest.mark.parametrize(("method", "case"), [("maple", "maple"), ("cocoop", "random")])
def test_vmap_gives_each_image_its_own_gradients(method, case, make):
    model = disturb(get_peft_model(tiny_clip(), make(method, case)))
    learned = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(learned, image, label):
        call = {"pixel_values": image[None], "labels": label[None]}
        return torch.func.functional_call(model, learned, kwargs=call).loss

    gradient = torch.func.grad(loss)
    together = torch.func.vmap(gradient, in_dims=(None, 0, 0))(learned, images(), labels())
    for index in (0, 3):
        alone = gradient(learned, images()[index], labels()[index])
        torch.testing.assert_close({name: value[index] for name, value in together.items()}, alone)


class Around(nn.Module):
    """A user's module with a CLIP inside."""

    def __init__(self):
        super().__init__()
        self.clip = tiny_clip()
        self.config = self.clip.config

    def forward(self, *args, **kwargs):
        return self.clip(*args, **kwargs)


def test_a_module_around_a_dual_encoder_is_evaluated_by_class_names(make):
    model = get_peft_model(Around(), make("context_opt", "end"))
    test_set = EvalSet([{"pixel_values": image, "labels": 0} for image in images(2)], NEW_NAMES)
    assert own_classes(model) is None
    learned, zero_shot = measure_beside_zero_shot(model, {"new": test_set}, metrics=("accuracy",))
    assert model.class_names == NEW_NAMES and learned.keys() == zero_shot.keys() == {"accuracy"}

"""Several labels for an image: the sigmoid loss with class names on every method and model."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, pipeline

from peft_vprompt import CLIPLoraConfig, ContextOptConfig, PromptSRCConfig, VisualPromptConfig
from peft_vprompt.backbones.supported import dual_encoder_view
from peft_vprompt.losses import BinaryCrossEntropy
from peft_vprompt.training.evaluation import compute_metrics
from peft_vprompt.tuners.base.registry import PROMPT_METHODS
from tests.support.backbones import DUAL_MODELS, frame, inputs, tiny
from tests.support.models import CLASS_NAMES, CONFIGS, disturb, images, tiny_clip, tiny_tokenizer, tiny_vit


SEVERAL = "multi_label_classification"
LABELS = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, -100], [0, 1, 0, 0, 1]])
KNOWN = LABELS >= 0
FIRST_CASES = [(method, next(iter(CONFIGS[method]))) for method in PROMPT_METHODS]


def sigmoid_loss(logits):
    return F.binary_cross_entropy_with_logits(logits[KNOWN], LABELS[KNOWN].float())


@pytest.mark.parametrize(("method", "case"), FIRST_CASES, ids="-".join)
def test_any_method_has_the_sigmoid_loss(method, case, make, tmp_path):
    model = disturb(get_peft_model(tiny_clip(), make(method, case, problem_type=SEVERAL, logit_bias=-2.0)))
    model.train()
    output = model(pixel_values=images(), labels=LABELS, output_aux_loss=False)
    if method != "mmrl":  # whose loss is that of two predictions
        torch.testing.assert_close(output.loss, sigmoid_loss(output.logits))
    output.loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_clip(), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(
            loaded(pixel_values=images(), labels=LABELS).loss, model(pixel_values=images(), labels=LABELS).loss
        )


def test_the_loss_of_two_predictions_is_their_mean(make):
    model = disturb(get_peft_model(tiny_clip(), make("mmrl", "mmrl", problem_type=SEVERAL)))
    with torch.no_grad():
        image, text = model.encode_images(images()), model.encode_classes()
        loss = model(pixel_values=images(), labels=LABELS).loss
    alpha = model.active_peft_config.alpha
    each = [sigmoid_loss(100 * image[:, i] @ text.t()) for i in range(2)]
    torch.testing.assert_close(loss, alpha * each[0] + (1 - alpha) * each[1])


@pytest.mark.parametrize("name", DUAL_MODELS)
def test_any_model_has_its_own_scale_and_bias(name, tmp_path):
    tiny_tokenizer(frame(name)).save_pretrained(tmp_path)
    config = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": str(tmp_path), "problem_type": SEVERAL}
    base = tiny(name)
    scale, bias = dual_encoder_view(base).logit_scale, getattr(base, "logit_bias", torch.zeros(1))
    model = get_peft_model(base, ContextOptConfig(num_virtual_tokens=2, **config)).eval()
    with torch.no_grad():
        output = model(**inputs(name), labels=LABELS)
        plain = scale * model.encode_images(**inputs(name)) @ model.encode_classes().t() + bias
    torch.testing.assert_close(output.logits, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.loss, sigmoid_loss(plain))
    assert not name.startswith("Siglip") or bias.abs() > 0  # or the test would not see it


def test_a_bias_of_ones_own_takes_the_place_of_the_models(tmp_path):
    tiny_tokenizer("siglip").save_pretrained(tmp_path)
    config = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": str(tmp_path), "problem_type": SEVERAL}
    logits = []
    for bias in (None, 0.0, 1.5):
        model = get_peft_model(tiny("SiglipModel"), VisualPromptConfig(logit_bias=bias, **config)).eval()
        with torch.no_grad(), model.disable_adapter():
            logits.append(model(pixel_values=images()).logits)
    own = tiny("SiglipModel").logit_bias.detach()
    torch.testing.assert_close(logits[0] - own, logits[1])
    torch.testing.assert_close(logits[2], logits[1] + 1.5)


def test_terms_against_the_frozen_model_compare_yes_and_no(make):
    model = disturb(get_peft_model(tiny_clip(), make("promptsrc", "independent", problem_type=SEVERAL)))
    with torch.no_grad():
        output = model(pixel_values=images(), labels=LABELS, output_aux_loss=True)
        with model.disable_adapter():
            frozen = torch.distributions.Bernoulli(logits=model(pixel_values=images()).logits)
    expected = torch.distributions.kl_divergence(frozen, torch.distributions.Bernoulli(logits=output.logits)).mean()
    torch.testing.assert_close(output.aux_losses["logit_consistency"], expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(output.loss, sigmoid_loss(output.logits) + output.aux_loss)


def test_projected_gradients_are_guided_by_the_frozen_models_yes_and_no(make):
    model = disturb(get_peft_model(tiny_clip(), make("prograd", "random", problem_type=SEVERAL)))
    (context,) = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad(), model.disable_adapter():
        wanted = model(pixel_values=images()).logits.sigmoid()
    logits = model(pixel_values=images()).logits
    (guide,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(logits, wanted), context, retain_graph=True)
    against = (logits.sigmoid() > wanted).long()  # labels that ask for more where the frozen model says less
    loss = F.binary_cross_entropy_with_logits(logits, against.float())
    (plain,) = torch.autograd.grad(loss, context, retain_graph=True)
    assert (plain * guide).sum() < 0
    model.train()(pixel_values=images(), labels=against).loss.backward()
    torch.testing.assert_close(context.grad, plain - (plain * guide).sum() / guide.square().sum() * guide)


def test_a_head_takes_several_labels_too():
    model = get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=2, problem_type=SEVERAL))
    output = model(pixel_values=images(), labels=LABELS)
    torch.testing.assert_close(output.loss, sigmoid_loss(output.logits))
    torch.testing.assert_close(model(pixel_values=images(), labels=LABELS, return_dict=False)[0], output.loss)
    with pytest.raises(ValueError, match="Expected multi-label labels"):
        model(pixel_values=images(), labels=torch.zeros(4).long())


def test_pefts_own_tuners_follow_the_base_models_config(tokenizer_path, tmp_path):
    base = tiny_clip()
    base.config.problem_type = SEVERAL
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="IMAGE_CLS")
    model = get_peft_model(base, config)
    model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
    output = model(pixel_values=images(), labels=LABELS)
    torch.testing.assert_close(output.loss, sigmoid_loss(output.logits))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_clip(), tmp_path)  # a base model that says nothing
    loaded.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
    torch.testing.assert_close(loaded(pixel_values=images(), labels=LABELS).loss, output.loss)
    assert loaded.get_base_model().config.problem_type == SEVERAL  # where pipelines look


def test_a_head_under_pefts_own_tuners_follows_the_base_models_config_before_and_after_it_is_saved(tmp_path):
    base = tiny_vit()
    base.config.problem_type = SEVERAL
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="IMAGE_CLS", modules_to_save=["classifier"])
    model = get_peft_model(base, config).eval()
    output = model(pixel_values=images(), labels=LABELS)
    torch.testing.assert_close(output.loss, sigmoid_loss(output.logits))
    model.save_pretrained(tmp_path / "several")
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path / "several").eval()
    for again in (model, loaded):
        assert torch.equal(again(pixel_values=images(), labels=LABELS).loss, output.loss)
    for each in (model, loaded):
        each.get_base_model().config.problem_type = "single_label_classification"
        output = each(pixel_values=images(), labels=torch.arange(4))
        torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, torch.arange(4)))
        each.save_pretrained(tmp_path / "one")
        one = PeftModel.from_pretrained(tiny_vit(), tmp_path / "one").eval()
        assert torch.equal(one(pixel_values=images(), labels=torch.arange(4)).loss, output.loss)


def test_pipelines_give_each_class_a_probability_of_its_own(tokenizer_path, clip_path):
    config = VisualPromptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path, problem_type=SEVERAL)
    one = VisualPromptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    model = get_peft_model(tiny_clip(), config).eval()
    model.add_adapter("one", one)
    kinds = []
    for name in ("default", "one", "default"):
        model.set_adapter(name)
        kinds.append(model.get_base_model().config.problem_type)
    assert kinds == [SEVERAL, None, SEVERAL]
    from transformers import AutoImageProcessor

    classify = pipeline(
        "image-classification", model, image_processor=AutoImageProcessor.from_pretrained(clip_path, backend="pil")
    )
    from PIL import Image

    picture = Image.new("RGB", (32, 32), "red")
    scores = {row["label"]: row["score"] for row in classify(picture, top_k=5)}
    pixels = classify.image_processor(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits.sigmoid()[0]
    torch.testing.assert_close(torch.tensor([scores[name] for name in CLASS_NAMES]), expected)
    assert model.unload().config.problem_type is None


@pytest.mark.parametrize("external", [False, True], ids=["own loss", "loss of the Trainer"])
def test_the_stock_trainer(external, tokenizer_path, tmp_path, forgetful):
    options = {} if external else {"problem_type": SEVERAL}
    config = PromptSRCConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path, prompt_depth=2, **options)
    model = get_peft_model(tiny_clip(), config)
    rows = [{"pixel_values": images()[i], "labels": LABELS[i].float()} for i in range(4)]

    def trainer(batch, accumulated):
        arguments = TrainingArguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        loss = BinaryCrossEntropy() if external else None
        return Trainer(
            model,
            arguments,
            train_dataset=rows,
            eval_dataset=rows,
            compute_metrics=compute_metrics,
            compute_loss_func=loss,
        )

    whole = trainer(4, 1)
    before = whole.evaluate()
    with torch.no_grad():
        logits = model.eval()(pixel_values=images()).logits
    assert before["eval_loss"] == pytest.approx(sigmoid_loss(logits).item(), rel=1e-5)
    assert 0 < before["eval_map"] <= 100
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    whole.train()
    moved = [(p - start[name]).abs().max() for name, p in model.named_parameters() if p.requires_grad]
    assert max(moved) > 0


def test_a_bias_without_several_labels_is_refused():
    with pytest.raises(ValueError, match="logit_bias with problem_type='multi_label_classification' alone"):
        VisualPromptConfig(logit_bias=1.0)
    with pytest.raises(ValueError, match="Expected problem_type to be one of"):
        VisualPromptConfig(problem_type="regression")


def test_the_models_bias_stands_for_the_same_cosine_under_another_scale(tmp_path):
    tiny_tokenizer("siglip").save_pretrained(tmp_path)
    base = tiny("SiglipModel")
    own, bias = base.logit_scale.exp().item(), base.logit_bias.item()
    config = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": str(tmp_path), "problem_type": SEVERAL}
    model = get_peft_model(base, CLIPLoraConfig(logit_scale=30.0, **config)).eval()
    with torch.no_grad():
        cosines = model.encode_images(**inputs("SiglipModel")) @ model.encode_classes().t()
        logits = model(**inputs("SiglipModel")).logits
    torch.testing.assert_close(logits, 30 * (cosines + bias / own))

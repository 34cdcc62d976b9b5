"""Methods that tune the encoders under the class-name classifier: CLIP-LoRA, tuning of norms, and its two stages."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from torch.nn import functional as F

from peft_vprompt.errors import AdapterMismatchError, UnsupportedModelError
from peft_vprompt.tuners.ln_tuning.method import is_norm
from tests.support.backbones import frame, tiny
from tests.support.models import (
    CLASS_NAMES,
    CONFIGS,
    NEW_NAMES,
    disturb,
    images,
    labels,
    logits,
    tiny_clip,
    tiny_tokenizer,
    tiny_vit,
)
from tests.support.watching import InputsOf


pytestmark = pytest.mark.core


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def second_stage(make):
    """A model in its second stage, with norms and rows that moved."""

    def build(**options):
        model = disturb(get_peft_model(tiny_clip(), make("two_stage", "first", **options)))
        model.start_class_head()
        return disturb(model, seed=2)

    return build


class TestTwoStages:
    def test_the_head_starts_as_the_tuned_texts_and_is_trained_alone(self, make):
        model = disturb(get_peft_model(tiny_clip(), make("two_stage", "first")))
        before, features = logits(model), model.encode_classes()
        model.start_class_head()
        assert trained(model) == {"base_model.model.text_model.two_stage_readout.default.weight"}
        torch.testing.assert_close(model.encode_classes().detach(), features.detach())
        torch.testing.assert_close(logits(model), before)
        read = InputsOf(model.base_model.model.text_model.encoder.layers[0].mlp.fc1.weight)
        with read:
            model.train()(pixel_values=images(), labels=labels()).loss.backward()
        assert not read.seen, "no text is encoded where every class has a vector"
        norms = [p for name, p in model.named_parameters() if "modules_to_save" in name]
        assert norms and all(p.grad is None for p in norms)

    def test_what_is_finished_stays_frozen(self, second_stage, make, tmp_path):
        model = second_stage()
        only = trained(model)
        model.add_adapter("other", make("context_opt", "end"))
        model.set_adapter("other")
        model.set_adapter("default")
        assert trained(model) == only
        with model.disable_adapter():
            logits(model)
        assert trained(model) == only
        model.set_adapter("other")
        model.delete_adapter("other")
        assert trained(model) == only
        model.set_requires_grad("default", False)
        assert not trained(model)
        model.set_requires_grad("default")
        assert trained(model) == only
        model.save_pretrained(tmp_path)
        assert trained(PeftModel.from_pretrained(tiny_clip(), str(tmp_path), is_trainable=True)) == only

    def test_save_and_load(self, second_stage, tmp_path):
        model = second_stage()
        model.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "adapter_config.json").read_text())
        assert saved["head_classes"] == saved["class_names"] == CLASS_NAMES
        loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path))
        assert torch.equal(logits(loaded), logits(model))
        for each in (loaded, model):
            each.set_class_names(NEW_NAMES)
        assert torch.equal(logits(loaded), logits(model))

    def test_rows_go_by_name_and_texts_tell_the_rest(self, second_stage, make):
        model = second_stage()
        rows = F.normalize(model.get_parameter("base_model.model.text_model.two_stage_readout.default.weight"), dim=-1)
        first = disturb(get_peft_model(tiny_clip(), make("two_stage", "first", class_names=NEW_NAMES)))
        model.set_class_names([NEW_NAMES[1], "sea_lion", CLASS_NAMES[0], NEW_NAMES[0]])
        expected = [first.encode_classes()[1], rows[1], rows[0], first.encode_classes()[0]]
        torch.testing.assert_close(model.encode_classes(), torch.stack(expected))
        model.set_class_names(CLASS_NAMES[::-1])
        torch.testing.assert_close(model.encode_classes(), rows.flip(0))

    def test_training_on_other_classes_keeps_the_rows_with_their_names(self, second_stage, tmp_path):
        model = second_stage()
        model.set_class_names([*NEW_NAMES, CLASS_NAMES[0]])
        loss = model.train()(pixel_values=images(), labels=torch.tensor([3, 0, 1, 3])).loss
        loss.backward()
        expected = model.eval().encode_classes()
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path))
        assert loaded.class_names == [*NEW_NAMES, CLASS_NAMES[0]]
        torch.testing.assert_close(loaded.encode_classes(), expected.detach(), rtol=0, atol=0)

    def test_weights_of_the_other_stage_say_what_helps(self, second_stage, make, tmp_path):
        second = second_stage()
        second.save_pretrained(tmp_path / "second")
        first = get_peft_model(tiny_clip(), make("two_stage", "first"))
        first.save_pretrained(tmp_path / "first")
        message = r"saved with head_classes=\[.*\] .here None.. Call model.start_class_head.. first, or load it with"
        with pytest.raises(AdapterMismatchError, match=message):
            first.load_adapter(str(tmp_path / "second"), "default")
        with pytest.raises(
            AdapterMismatchError, match="saved with head_classes=None .*. Load it .* under another name"
        ):
            second.load_adapter(str(tmp_path / "first"), "default")
        first.start_class_head()
        first.load_adapter(str(tmp_path / "second"), "default")
        assert torch.equal(logits(first), logits(second))

    def test_rows_under_other_names_are_refused(self, second_stage, tmp_path):
        second_stage().save_pretrained(tmp_path)
        path = tmp_path / "adapter_config.json"
        config = json.loads(path.read_text())
        config["head_classes"] = CLASS_NAMES[::-1]
        path.write_text(json.dumps(config))
        with pytest.raises(AdapterMismatchError, match="not the names it learned them for"):
            PeftModel.from_pretrained(tiny_clip(), str(tmp_path))

    def test_rows_of_other_classes_are_not_averaged(self, second_stage, tmp_path):
        model = second_stage()
        second_stage(class_names=CLASS_NAMES[::-1]).save_pretrained(tmp_path)
        model.load_adapter(str(tmp_path), "reversed")
        with pytest.raises(ValueError, match="the same classes"):
            model.add_weighted_adapter(["default", "reversed"])

    def test_disabled_it_is_the_base_model(self, second_stage, make):
        plain = get_peft_model(tiny_clip(), make("norm_tuning", "both"))
        model = second_stage()
        with model.disable_adapter(), plain.disable_adapter():
            assert torch.equal(logits(model), logits(plain.eval()))

    @pytest.mark.parametrize(
        ("method", "case", "message"),
        [
            ("context_opt", "end", "learns in two stages. Received: ContextOptConfig. Use TwoStageConfig"),
            ("norm_tuning", "both", "learns in two stages. Received: NormTuningConfig"),
            ("clip_lora", "both", "learns in two stages. Received: CLIPLoraConfig"),
        ],
    )
    def test_other_methods_have_one_stage(self, method, case, message, make):
        with pytest.raises(ValueError, match=message):
            get_peft_model(tiny_clip(), make(method, case)).start_class_head()

    def test_a_stage_starts_once(self, second_stage, make):
        model = second_stage()
        with pytest.raises(ValueError, match="in its second stage already"):
            model.start_class_head()
        first = get_peft_model(tiny_clip(), make("two_stage", "first"))
        with first.disable_adapter(), pytest.raises(ValueError, match="is disabled"):
            first.start_class_head()
        assert first.peft_config["default"].head_classes is None


class TestNorms:
    def test_only_norms_inside_layers_from_the_first_on(self, make):
        config = make("norm_tuning", "both", towers="vision", vision_first_layer=1)
        model = get_peft_model(tiny_clip(), config)
        prefix = "base_model.model.vision_model.base_layer.encoder.layers"
        assert trained(model) == {
            f"{prefix}.{layer}.layer_norm{number}.modules_to_save.default.{part}"
            for layer in (1, 2)
            for number in (1, 2)
            for part in ("weight", "bias")
        }
        assert model.get_nb_trainable_parameters()[0] == 2 * 2 * 2 * 24

    @pytest.mark.parametrize("field", ["text_first_layer", "vision_first_layer"])
    def test_a_layer_that_is_not_there(self, field, make):
        with pytest.raises(ValueError, match=f"Expected {field} < 3, the layers of the tower. Received: {field}=3"):
            get_peft_model(tiny_clip(), make("norm_tuning", "both", **{field: 3}))

    @pytest.mark.parametrize(
        ("first", "second"),
        [(("text_encoder", "whole"), ("norm_tuning", "both")), (("norm_tuning", "both"), ("text_encoder", "whole"))],
    )
    def test_a_copy_of_the_whole_and_copies_inside_it_are_kept_apart(self, first, second, make):
        model = disturb(get_peft_model(tiny_clip(), make(*first)))
        expected = logits(model)
        with pytest.raises(ValueError, match="on models of their own"):
            model.add_adapter("other", make(*second))
        assert list(model.peft_config) == ["default"] and torch.equal(logits(model), expected)


class TestCLIPLora:
    def changes(self, model):
        """Whatever changes what the text encoder says, by name: in the model that is given."""
        lora = [module for module in model.modules() if isinstance(module, LoraLayer)]

        def step():
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
            model.train()(pixel_values=images(), labels=labels()).loss.backward()
            optimizer.step()
            model.eval()

        def past_the_counters():
            for layer in lora:
                layer.lora_B["default"].weight.data.add_(0.1)

        def scale():
            for layer in lora:
                layer.set_scale("default", 3.0)

        return {"step": step, "data": past_the_counters, "scale": scale}

    @pytest.mark.parametrize("change", ["step", "data", "scale"])
    def test_kept_class_features_are_never_stale(self, change, make):
        model = get_peft_model(tiny_clip(), make("clip_lora", "both", lora_dropout=0.25)).eval()
        with torch.no_grad():
            before = model.encode_classes()
        self.changes(model)[change]()
        with torch.no_grad():
            after = model.encode_classes()
            model.class_name_classifier.memory.features.clear()
            fresh = model.encode_classes()
        assert torch.equal(after, fresh) and not torch.allclose(after, before, atol=1e-4)

    def test_dropout_acts_in_training_alone(self, make):
        model = get_peft_model(tiny_clip(), make("clip_lora", "both", lora_dropout=0.25)).train()
        with torch.no_grad():
            first, second = logits(model), logits(model)
            assert not torch.equal(first, second)
            model.eval()
            assert torch.equal(logits(model), logits(model))

    def test_scale_of_the_change_and_of_the_logits(self, make):
        model = get_peft_model(tiny_clip(), make("clip_lora", "both", r=4, lora_alpha=3, logit_scale=100.0)).eval()
        scaling = {layer.scaling["default"] for layer in model.modules() if isinstance(layer, LoraLayer)}
        assert scaling == {3 / 4**0.5}
        cosines = logits(model) / 100
        expected = model.encode_images(images()) @ model.encode_classes().T
        torch.testing.assert_close(cosines, expected.detach())
        own = get_peft_model(tiny_clip(), make("clip_lora", "both")).eval()
        expected = own.encode_images(images()) @ own.encode_classes().T * own.logit_scale.exp()
        torch.testing.assert_close(logits(own), expected.detach())

    @pytest.mark.parametrize("tower", ["text", "vision"])
    def test_one_tower_alone(self, tower, make):
        model = get_peft_model(tiny_clip(), make("clip_lora", "both", towers=tower))
        assert {name.split(".")[2] for name in trained(model)} == {f"{tower}_model"}
        assert len(trained(model)) == 3 * 3 * 2
        features = model.eval().encode_images(images())
        if tower == "text":  # nothing that is trained changes the images
            model.train()(image_features=features.detach(), labels=labels()).loss.backward()
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        else:
            with pytest.raises(UnsupportedModelError, match="image features that do not change"):
                model.train()(image_features=features.detach(), labels=labels())

    def test_some_layers_alone(self, make, tmp_path):
        options = {"layers_to_transform": [0, 2], "layers_pattern": "layers"}
        for layers in ({0, 2}, {1}):
            model = disturb(get_peft_model(tiny_clip(), make("clip_lora", "both", **options)))
            assert {int(name.split(".")[5]) for name in trained(model)} == layers
            assert len(trained(model)) == 2 * len(layers) * 3 * 2
            options = {"layers_to_transform": 1}
        model.save_pretrained(tmp_path)
        assert torch.equal(logits(PeftModel.from_pretrained(tiny_clip(), str(tmp_path))), logits(model.eval()))

    def test_consistency_with_the_frozen_model(self, make):
        config = make("clip_lora", "both", text_consistency_weight=2.0, image_consistency_weight=1.0)
        model = get_peft_model(tiny_clip(), config).train()
        output = model(pixel_values=images(), labels=labels())
        with torch.no_grad(), model.disable_adapter():
            text, image = model.eval().encode_classes(), model.encode_images(images())
        with torch.no_grad():
            terms = [
                2 * (1 - (model.encode_classes() * text).sum(-1).mean()),
                1 - (model.encode_images(images()) * image).sum(-1).mean(),
            ]
        torch.testing.assert_close(output.aux_loss.detach(), sum(terms))

    def test_prompts_are_not_put_on_the_same_model(self, make):
        for first, second in (
            (("clip_lora", "both"), ("context_opt", "end")),
            (("maple", "maple"), ("clip_lora", "both")),
        ):
            model = get_peft_model(tiny_clip(), make(*first)).eval()
            expected = logits(model)
            with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
                model.add_adapter("other", make(*second))
            assert list(model.peft_config) == ["default"] and torch.equal(logits(model), expected)

    def test_biases_are_trained_and_saved_where_asked(self, make, tmp_path):
        model = disturb(get_peft_model(tiny_clip(), make("clip_lora", "both", bias="lora_only")))
        assert any(name.endswith("base_layer.bias") for name in trained(model))
        model.save_pretrained(tmp_path)
        assert torch.equal(logits(PeftModel.from_pretrained(tiny_clip(), str(tmp_path))), logits(model))

    def test_an_image_classifier_has_no_class_names(self, make):
        with pytest.raises(UnsupportedModelError, match="CLIP-LoRA.*ViTForImageClassification has no text tower"):
            get_peft_model(tiny_vit(), make("clip_lora", "both"))

    def test_a_rank_beyond_the_model_is_refused(self, make):
        with pytest.raises(ValueError, match="asks for more: .*r=1000000"):
            get_peft_model(tiny_clip(), make("clip_lora", "both", r=1_000_000))


@pytest.mark.parametrize("base", ["CLIPModel", "Aimv2Model"])
@pytest.mark.parametrize("method", ["norm_tuning", "text_encoder"])
def test_copies_in_full_precision_beside_a_base_model_in_half(method, base, make):
    clip = (tiny_clip() if base == "CLIPModel" else tiny(base)).bfloat16()
    model = get_peft_model(clip, make(method, next(iter(CONFIGS[method])), class_names=None))
    model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer(frame(base)))
    seen = set()
    note = lambda module, given, output: seen.add((module.weight.dtype, given[0].dtype, output.dtype))  # noqa: E731
    wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    copies = [wrapper.modules_to_save["default"] for wrapper in wrappers if is_norm(wrapper.original_module)]
    assert copies
    for norm in copies:
        norm.register_forward_hook(note)
    model(pixel_values=images().bfloat16(), labels=labels()).loss.backward()
    assert seen == {(torch.float32,) * 3}, "kernels of cards take no mixture"
    assert all(p.dtype == torch.float32 and p.grad is not None for p in model.parameters() if p.requires_grad)

    ids = torch.tensor([[3, 4, 5, clip.config.text_config.eos_token_id]])
    with torch.no_grad():
        found = clip.get_text_features(input_ids=ids).pooler_output
        merged = disturb(model).merge_and_unload()
        assert {p.dtype for p in merged.parameters()} == {found.dtype} == {torch.bfloat16}
        merged.get_text_features(input_ids=ids)

"""Images of another size: positions that are interpolated once are those that a call would interpolate."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from peft_vprompt import VisualPromptConfig
from peft_vprompt.backbones.image_size import set_image_size
from peft_vprompt.backbones.supported import find_backbone, view
from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.experiments.models import build_model
from tests.support.backbones import DUAL_MODELS, VISION_MODELS, tiny
from tests.support.models import CLASS_NAMES, IMAGE_SIZE
from tests.support.saved_models import save_tiny


SIZE = 48
#: Models that take images of any shape, and those of one size.
OTHERS = ("Siglip2", "Aimv2")
WHOLE = [name for name in VISION_MODELS if not name.startswith(OTHERS)]


def large(count=2):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def features(model):
    with torch.no_grad():
        output = model(pixel_values=large())
    return next(value for value in output.values() if isinstance(value, torch.Tensor) and value.is_floating_point())


@pytest.mark.parametrize("name", WHOLE)
def test_positions_are_those_of_a_call_that_interpolates(name):
    model, resized = tiny(name), tiny(name)
    set_image_size(resized, SIZE)
    tower, other = (view(each.get_submodule(find_backbone(each).vision)) for each in (model, resized))
    expected = tower.embed(large(), interpolate_pos_encoding=tower.fixed_size or None)
    other.check_images(large(), None)
    torch.testing.assert_close(other.embed(large()), expected, rtol=1e-5, atol=1e-5)
    if name != "ViTMAEModel":  # which drops patches at random
        assert features(resized).isfinite().all()
    assert {n: p.requires_grad for n, p in resized.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


@pytest.mark.parametrize("name", [name for name in DUAL_MODELS if not name.startswith(OTHERS)])
@pytest.mark.parametrize("location", ["prepend", "pad"])
def test_prompts_at_another_size(name, location, tmp_path):
    path = save_tiny(tmp_path / "base", name)
    options = {"location": location, "deep": False, "num_virtual_tokens": 2, "num_deep_layers": None}
    if name in ("ChineseCLIPModel", "AltCLIPModel"):
        pytest.skip("its tiny tokenizer is not one that the command line loads")
    bundle = build_model(path, "vpt", CLASS_NAMES, image_size=SIZE, **options)
    logits = bundle.model.eval()(pixel_values=large()).logits
    assert bundle.image_processor.size["height"] == SIZE
    bundle.model.save_pretrained(tmp_path / "a")
    if location == "prepend":  # the adapter works with the model's own call, too
        base = type(bundle.model.get_base_model()).from_pretrained(path)
        plain = PeftModel.from_pretrained(base, tmp_path / "a").eval()
        again = plain(pixel_values=large(), interpolate_pos_encoding=True).logits
        torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4)


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="multiple of the patch size 8. Received: 50. The nearest is 48"):
        set_image_size(tiny("CLIPModel"), 50)
    for size in (10**9, 0, -8, True, "48", 48.0):
        with pytest.raises(ValueError, match="image_size to be an integer >= 1.*Received: image_size="):
            set_image_size(tiny("CLIPModel"), size)
    with pytest.raises(ValueError, match="positions take at most .* image_size=16384, which takes"):
        set_image_size(tiny("CLIPModel"), 16_384)
    with pytest.raises(UnsupportedModelError, match="cannot be interpolated, so it takes images of 32 pixels only"):
        set_image_size(tiny("Aimv2Model"), SIZE)
    with pytest.raises(UnsupportedModelError, match="images of any shape"):
        set_image_size(tiny("Siglip2Model"), SIZE)


def test_the_models_own_size_changes_nothing():
    model = tiny("CLIPModel")
    before = model.vision_model.embeddings.position_embedding
    set_image_size(model, IMAGE_SIZE)
    assert model.vision_model.embeddings.position_embedding is before
    get_peft_model(model, VisualPromptConfig(class_names=CLASS_NAMES))

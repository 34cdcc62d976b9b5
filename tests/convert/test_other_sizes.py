"""Nothing depends on the sizes of published CLIPs: files of other widths, depths, heads and images against plain functions."""

import json

import pytest
import torch
from safetensors.torch import save_file

from peft_vprompt.models import load_open_clip
from peft_vprompt.models.open_clip import from_state_dict
from tests.support import plain_clip


#: Text: width, inside, layers, vocabulary, positions, heads. Image: what `vit_shapes` or `resnet_shapes` takes but the last,
#: and heads. Joint space.
CASES = {
    "resnet-1231": ((48, 100, 2, 60, 20, 3), (6, (1, 2, 3, 1), 2, 4), 20),
    "resnet-wide-96": ((36, 144, 1, 50, 9, 6), (8, (2, 1, 1, 2), 3, 16), 28),
    "vit-odd-grid": ((40, 120, 3, 70, 13, 5), (30, 77, 3, 7, 5, 3), 18),
    "vit-one-head": ((24, 24, 1, 40, 30, 1), (16, 64, 2, 4, 3, 1), 50),
}


def build(case):
    text, image, dim = CASES[case]
    shapes = plain_clip.text_shapes(*text[:5], dim)
    make = plain_clip.resnet_shapes if case.startswith("resnet") else plain_clip.vit_shapes
    state = plain_clip.random_state(shapes | make(*image[:-1], dim))
    grid, patch = (image[2], 32) if case.startswith("resnet") else (image[4], image[3])
    return state, grid * patch


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_against_plain_functions(case, tmp_path):
    text, image, dim = CASES[case]
    state, size = build(case)
    resnet = case.startswith("resnet")
    heads = image[-1]
    width = 32 * image[0] if resnet else image[0]
    vision = {"image_size": size, "head_width": width // heads, "width": image[0]}
    vision |= {"layers": list(image[1])} if resnet else {"layers": image[2], "patch_size": image[3]}
    said = {"embed_dim": dim, "quick_gelu": True, "vision_cfg": vision}
    said["text_cfg"] = {"width": text[0], "heads": text[5], "layers": text[2], "vocab_size": text[3]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": said}))
    save_file(state, tmp_path / "open_clip_model.safetensors")
    model = load_open_clip(tmp_path)

    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, size, size, generator=generator)
    ids = torch.randint(0, text[3] - 2, (2, 7), generator=generator)
    ids[0, 4], ids[1, 6] = text[3] - 1, text[3] - 1
    images = (plain_clip.resnet if resnet else plain_clip.vit)(state, pixels, heads)
    texts = plain_clip.texts(state, ids, text[5])
    close = {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, images, **close)
    torch.testing.assert_close(model.get_text_features(ids).pooler_output, texts, **close)
    cosine = torch.cosine_similarity(images[:, None], texts[None], dim=-1)
    logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
    torch.testing.assert_close(logits, state["logit_scale"].exp() * cosine, atol=1e-4, rtol=1e-4)


def test_heads_of_64_numbers_without_a_configuration():
    state, _ = build("resnet-1231")
    config = from_state_dict(state).config
    assert config.vision_config.depths == [1, 2, 3, 1] and config.vision_config.image_size == 64
    assert config.vision_config.num_attention_heads == 3 and config.text_config.num_attention_heads == 1

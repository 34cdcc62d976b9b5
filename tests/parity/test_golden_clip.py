"""Equal to the authors' own code on CLIP, through the converter and the public API alone.

The reference outputs (logits, gradients, ten SGD steps, other class names) are kept beside the checkout.
"""

import json
import shutil

import pytest
import torch
import transformers
from packaging.version import Version
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel
from typer.testing import CliRunner

from peft_vprompt import VisualPromptConfig
from peft_vprompt.convert import convert_checkpoint
from peft_vprompt.core.prompt_templates import ENSEMBLES, SINGLE
from vprompt import app


pytestmark = pytest.mark.core

TOLERANCE = {"atol": 2e-5, "rtol": 0}

#: Reference case -> method, and what its tensors cannot tell.
CASES = {
    "coop_m4_end": ("coop", {}),
    "coop_m4_front": ("coop", {"class_token_position": "front"}),
    "coop_csc_m4_end": ("coop", {}),
    "coop_words_end": ("coop", {"prompt_init": "text", "prompt_init_text": "a photo of a"}),
    "cocoop_words_proj64": ("cocoop", {}),
    "rpo_k3": ("rpo", {}),
    "maple_n2_d1": ("maple", {}),
    "maple_n2_d3": ("maple", {}),
    "ivlp_2x2_d3": ("ivlp", {}),
    "vpt_n3_d3": ("vpt-clip", {}),
}


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "clip"


@pytest.fixture(scope="module")
def inputs(recipe):
    return recipe.make_inputs()


def authors_checkpoint(reference, method):
    """The checkpoint as the authors' trainer saves it: CoOp's family the learner alone, the others the whole model."""
    learner_only = method in ("coop", "cocoop", "rpo")
    state = {
        name.removeprefix("param.").removeprefix("prompt_learner." if learner_only else ""): tensor
        for name, tensor in reference.items()
        if name.startswith("param.")
    }
    ignored = "token_prefix" if learner_only else "prompt_learner.token_prefix"
    return {"state_dict": state | {ignored: torch.zeros(5, 1, 32)}, "epoch": 5}


@pytest.fixture(params=CASES)
def case(request, golden, recipe, inputs, shared, tmp_path):
    method, options = CASES[request.param]
    reference = load_file(golden / f"{request.param}.safetensors")
    facts = json.loads((golden / f"{request.param}.json").read_text())
    torch.save(authors_checkpoint(reference, method), tmp_path / "model.pth.tar-5")
    convert_checkpoint(
        tmp_path / "model.pth.tar-5",
        method,
        tmp_path / "adapter",
        base_model=recipe.build_clip(projection=facts["projection"]),
        class_names=inputs["base_classes"],
        tokenizer_name_or_path=str(shared / "clip-tokenizer"),
        **options,
    )
    base = recipe.build_clip(projection=facts["projection"])
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapter"), is_trainable=True).eval()
    return model, reference, facts


def test_logits_loss_and_features(case, inputs):
    model, reference, facts = case
    rows = facts["loss_and_grad_indices"]
    output = model(pixel_values=inputs["pixel_values"][rows], labels=inputs["labels"][rows])
    torch.testing.assert_close(output.logits, reference["logits"], **TOLERANCE)
    torch.testing.assert_close(output.loss, reference["loss"].reshape(()), **TOLERANCE)
    with torch.no_grad():
        pixel_values = inputs["pixel_values"][rows]
        features = model.encode_images(pixel_values), model.encode_classes(pixel_values)
    for name, mine in zip(("feat.image_features", "feat.text_features"), features, strict=True):
        if name in reference:
            theirs = torch.nn.functional.normalize(reference[name], dim=-1)
            torch.testing.assert_close(mine, theirs, **TOLERANCE)


def test_number_of_trained_parameters(case):
    model, _, facts = case
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == facts["trainable_count"]


def test_gradients_through_ten_sgd_steps_and_new_classes(case, inputs):
    model, reference, facts = case
    settings = {k: facts["optimizer"][k] for k in ("lr", "momentum", "weight_decay", "dampening", "nesterov")}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **settings)
    losses = []
    for rows in facts["traj_batches"]:
        loss = model(pixel_values=inputs["pixel_values"][rows], labels=inputs["labels"][rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(torch.stack(losses), reference["traj_loss"], **TOLERANCE)
    with torch.no_grad():
        pixel_values = inputs["pixel_values"][facts["logits_indices"]]
        torch.testing.assert_close(model(pixel_values=pixel_values).logits, reference["final_logits"], **TOLERANCE)
        if "final_novel_logits" in reference:
            model.set_class_names(inputs["novel_classes"])
            novel = model(pixel_values=pixel_values).logits
            torch.testing.assert_close(novel, reference["final_novel_logits"], **TOLERANCE)


@pytest.mark.parametrize("name", ["zeroshot_single", "zeroshot_ensemble7"])
@pytest.mark.parametrize("disabled", [True, False], ids=["own-call", "packed"])
def test_zero_shot(name, disabled, golden, recipe, inputs, shared):
    """With the adapter off the base model's own call gives the text features, with visual prompts the packed one."""
    reference = load_file(golden / f"{name}.safetensors")
    config = VisualPromptConfig(
        class_names=inputs["base_classes"],
        tokenizer_name_or_path=str(shared / "clip-tokenizer"),
        template=SINGLE if name == "zeroshot_single" else ENSEMBLES["ensemble-7"],
    )
    model = get_peft_model(recipe.build_clip(), config).eval()
    for kind, classes in (("", "base_classes"), ("novel_", "novel_classes")):
        model.set_class_names(inputs[classes])
        with torch.no_grad():
            if disabled:
                with model.disable_adapter():
                    logits = model(pixel_values=inputs["pixel_values"]).logits
                torch.testing.assert_close(logits, reference[f"{kind}logits"], **TOLERANCE)
            theirs = torch.nn.functional.normalize(reference[f"{kind}text_features"], dim=-1)
            torch.testing.assert_close(model.encode_classes(), theirs, **TOLERANCE)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.10"),
    reason="the command line reads images without torchvision by newer releases of transformers only",
)
def test_a_converted_checkpoint_is_evaluated_on_the_command_line(golden, recipe, inputs, shared, tmp_path):
    """`vprompt convert`, then `vprompt evaluate` on images that are sorted into folders by what the model sees."""
    facts = json.loads((golden / "coop_m4_front.json").read_text())
    base = recipe.build_clip(projection=facts["projection"])
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(shared / "clip-tokenizer").save_pretrained(tmp_path / "base")
    edge = base.config.vision_config.image_size
    size = {"height": edge, "width": edge}
    processor = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=size)
    processor.save_pretrained(tmp_path / "base")
    checkpoint = authors_checkpoint(load_file(golden / "coop_m4_front.safetensors"), "coop")
    torch.save(checkpoint, tmp_path / "model.pth.tar-5")
    (tmp_path / "names.txt").write_text("\n".join(inputs["base_classes"]))
    vprompt("convert", tmp_path / "model.pth.tar-5", "--method", "coop", "--model", tmp_path / "base",
            "--class-names", tmp_path / "names.txt", "--set", "class_token_position=front",
            "--output", tmp_path / "adapter")  # fmt: skip

    base = CLIPModel.from_pretrained(tmp_path / "base")
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    generator, seen = torch.Generator().manual_seed(0), set()
    for index in range(20):
        pixels = (255 * torch.randint(2, (2, 2, 3), generator=generator, dtype=torch.uint8)).numpy()
        image = Image.fromarray(pixels).resize((edge, edge), Image.Resampling.NEAREST)
        with torch.no_grad():
            seen_as = model(**processor(image, return_tensors="pt")).logits.argmax().item()
        seen.add(seen_as)
        folder = tmp_path / "data" / "test" / f"{seen_as}"
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{index}.png")
    assert len(seen) > 1, seen
    for label in set(range(len(inputs["base_classes"]))) - seen:  # a label is the place of its folder in the order
        (tmp_path / "data" / "test" / f"{label}").mkdir()
        shutil.copy(next((tmp_path / "data").rglob("*.png")), tmp_path / "data" / "test" / f"{label}" / "other.png")
    result = vprompt("evaluate", "--adapter", tmp_path / "adapter", "--model", tmp_path / "base",
                     "--data", tmp_path / "data", "--class-names", tmp_path / "names.txt")  # fmt: skip
    images, others = 20 + len(inputs["base_classes"]) - len(seen), len(inputs["base_classes"]) - len(seen)
    assert f"{images} images): {100 * (images - others) / images:.2f} %" in " ".join(result.split())


def vprompt(*arguments) -> str:
    """Run the command line; what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output

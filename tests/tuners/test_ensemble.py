"""Several contexts in one adapter: logits are the mean of the members', and classes can be moved."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from peft_vprompt import ContextOptConfig
from peft_vprompt.data import DataOptions, load_images
from peft_vprompt.experiments import run
from peft_vprompt.experiments.ensemble import context_tokens, set_contexts
from peft_vprompt.experiments.run import run_experiment
from peft_vprompt.experiments.settings import Settings
from tests.support.models import CLASS_NAMES, NEW_NAMES, images, labels, tiny_clip


POSITIONS = pytest.mark.parametrize("options", [
    {"num_virtual_tokens": 3},
    {"num_virtual_tokens": 3, "class_token_position": "middle"},
    {"prompt_init": "text", "prompt_init_text": "a photo of a"},
], ids=["end", "middle", "words"])  # fmt: skip


def member(seed, tokenizer_path, **options):
    config = ContextOptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path, **options)
    model = get_peft_model(tiny_clip(), config)
    torch.manual_seed(seed)
    model.base_model.text_encoder.active_prompts.tokens.data += 0.3 * torch.randn(
        1, config.num_contexts * config.num_virtual_tokens, 32
    )
    return model.eval()


def logits(model, names=CLASS_NAMES):
    model.set_class_names(names)
    with torch.no_grad():
        return model(pixel_values=images()).logits


@POSITIONS
def test_logits_are_the_mean_of_the_members(options, tokenizer_path, tmp_path):
    members = [member(seed, tokenizer_path, **options) for seed in range(3)]
    for model in members[1:]:
        assert not torch.allclose(logits(members[0]), logits(model), atol=1e-3)
    trained = member(9, tokenizer_path, num_contexts=3, **options)
    set_contexts(trained, [context_tokens(model) for model in members])
    trained.save_pretrained(tmp_path)
    ensemble = PeftModel.from_pretrained(tiny_clip(), str(tmp_path))
    assert ensemble.peft_config["default"].num_contexts == 3
    for names in (CLASS_NAMES, NEW_NAMES):
        expected = torch.stack([logits(model, names) for model in members]).mean(0)
        torch.testing.assert_close(logits(ensemble, names), expected, rtol=0, atol=1e-5)


def test_contexts_can_be_trained_together(tokenizer_path):
    model = member(0, tokenizer_path, num_virtual_tokens=2, num_contexts=2)
    model(pixel_values=images(), labels=labels()).loss.backward()
    gradient = model.base_model.text_encoder.active_prompts.tokens.grad
    assert (gradient.abs().sum(-1) > 0).all() and gradient.shape == (1, 4, 32)


def test_errors(tokenizer_path):
    options = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path}
    with pytest.raises(ValueError, match="integer >= 1. Received: num_contexts=0"):
        ContextOptConfig(num_contexts=0)
    with pytest.raises(ValueError, match="several contexts.*num_contexts=2, class_specific=True"):
        ContextOptConfig(num_contexts=2, class_specific=True, **options)
    model = member(0, tokenizer_path, num_virtual_tokens=2, num_contexts=2)
    with pytest.raises(ValueError, match=r"Expected 2 contexts of shape \(1, 2, 32\). Received: \[\(1, 4, 32\)\]"):
        set_contexts(model, [context_tokens(model)])
    with pytest.raises(ValueError, match="learned a context for all classes.*Received: ContextOptConfig"):
        context_tokens(get_peft_model(tiny_clip(), ContextOptConfig(tune="class_name", **options)))
    with pytest.raises(ValueError, match="set_class_names"):
        model(input_ids=torch.tensor([[0]]), pixel_values=images(1))


def test_members_are_built_as_the_whole_is(clip_path, colours, tmp_path, monkeypatch):
    built, build = [], run.build_model
    monkeypatch.setattr(
        run, "build_model", lambda *names, **options: built.append(options) or build(*names, **options)
    )
    data = load_images(DataOptions(colours, label_column="colour"))
    settings = Settings(
        "coop", model=clip_path, ensemble=2, precision="bf16", shots=2, epochs=2, config={"num_virtual_tokens": 2}
    )
    run_experiment(settings, data, tmp_path, quiet=True, compare=False)
    assert [options["precision"] for options in built] == ["bf16"] * 3
    assert [options.get("num_contexts") for options in built] == [2, None, None]

"""Equal to the authors' own code of methods that tune the encoders, through the public API alone.

The reference outputs are kept beside the checkout; every case of a method that is there is run.
"""

import json
import re

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from peft_vprompt import CLIPLoraConfig, TwoStageConfig
from tests.parity.test_golden_field import GRADIENTS, LOGITS, LOGITS_100, LOSSES, VALUES


pytestmark = pytest.mark.core

LAYER = r"(visual\.)?transformer\.resblocks\.(\d+)\.(?:attn\.)?"


def cases(shared, prefix):
    return sorted(path.stem for path in (shared / "golden" / "field").glob(f"{prefix}*.json"))


@pytest.fixture(scope="module")
def inputs(recipe):
    return recipe.make_inputs()


@pytest.fixture
def load(recipe, inputs, shared):
    """Make a model of ours on the weights of a case, with what the authors' code gave and what it was told."""

    def load(name, config_of):
        folder = shared / "golden" / "field"
        facts = json.loads((folder / f"{name}.json").read_text())
        config = config_of(facts["hyperparameters"])
        config.class_names = inputs["base_classes"]
        config.tokenizer_name_or_path = str(shared / "clip-tokenizer")
        model = get_peft_model(recipe.build_clip(projection=facts["projection"]), config)
        return model, load_file(folder / f"{name}.safetensors"), facts

    return load


def tensors(model, ours, last):
    """Return the authors' names and our tensors of the modules that are tuned, by `ours`: a pattern of our names."""
    found = {}
    for name, parameter in model.named_parameters():
        if match := re.fullmatch(ours, name):
            tower, layer, *rest = match.groups()
            prefix = "visual." if tower == "vision" else ""
            found[f"{prefix}transformer.resblocks.{layer}.{last(*rest)}"] = parameter
    return found


def given(reference, prefix):
    return {k.removeprefix(prefix): v for k, v in reference.items() if k.startswith(prefix) and "resblocks" in k}


def values(named):
    return {name: parameter.detach() for name, parameter in named.items()}


@torch.no_grad()
def logits(model, inputs, facts, names, rows="logits_indices"):
    model.eval().set_class_names(names)
    answer = model(pixel_values=inputs["pixel_values"][facts[rows]]).logits
    model.set_class_names(inputs["base_classes"])
    return answer


def steps(model, inputs, facts, which, rates):
    """Take the reference's steps numbered `which` with a new optimizer; return the losses and the first gradients."""
    settings = {key: facts["optimizer"][key] for key in ("lr", "betas", "eps", "weight_decay")}
    trained = {name: p for name, p in model.train().named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), **settings)
    losses, first = [], {}
    for step, rate in zip(which, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        rows = facts["traj_batches"][step]
        output = model(pixel_values=inputs["pixel_values"][rows], labels=inputs["labels"][rows])
        optimizer.zero_grad()
        output.loss.backward()
        first = first or {name: p.grad.clone() for name, p in trained.items()}
        optimizer.step()
        losses.append(output.loss.detach())
    return torch.stack(losses), first


class TestCLIPLora:
    OURS = r".*\.(text|vision)_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv]_proj|out_proj)\.lora_([AB])\.default\.weight"

    def names(self, model):
        return tensors(model, self.OURS, lambda p, ab: f"attn.{p.replace('out_proj', 'proj')}.w_lora_{ab}")

    @pytest.fixture
    def case(self, shared, load):
        def load_case(name):
            def config(chosen):
                ends = "|".join({"o": "out_proj"}.get(p, f"{p}_proj") for p in chosen["params"])
                towers = {"both": "text|vision"}.get(chosen["encoder"], chosen["encoder"])
                plain = chosen["params"] == ["q", "k", "v"]
                return CLIPLoraConfig(
                    r=chosen["r"],
                    lora_alpha=chosen["alpha"],
                    lora_dropout=0.0,
                    towers=chosen["encoder"],
                    template=chosen["template"],
                    target_modules=None if plain else rf"({towers})_model\..*\.({ends})",
                )

            model, reference, facts = load(name, config)
            ours, theirs = self.names(model), given(reference, "param.")
            assert ours.keys() == theirs.keys() and {n for n, p in model.named_parameters() if p.requires_grad} == {
                n for n, _ in model.named_parameters() if "lora_" in n
            }
            self.put(model, theirs)
            return model, reference, facts

        return load_case

    @torch.no_grad()
    def put(self, model, theirs):
        for key, parameter in self.names(model).items():
            parameter.copy_(theirs[key])

    def test_logits_the_first_loss_and_the_weights_merged_after_training(self, case, inputs, shared):
        for name in cases(shared, "clip_lora"):
            model, reference, facts = case(name)
            for names, key in (("base_classes", "logits"), ("novel_classes", "novel_logits")):
                answer = logits(model, inputs, facts, inputs[names])
                torch.testing.assert_close(answer, reference[key], **LOGITS_100)
            rows = facts["traj_batches"][0]
            loss = model.train()(pixel_values=inputs["pixel_values"][rows], labels=inputs["labels"][rows]).loss
            assert abs(loss.item() - facts["loss"]) <= LOSSES["atol"]
            self.put(model, given(reference, "final."))
            for names, key in (("base_classes", "final_logits"), ("novel_classes", "final_novel_logits")):
                answer = logits(model, inputs, facts, inputs[names])
                torch.testing.assert_close(answer, reference[key], **LOGITS_100)
            merged = model.merge_and_unload()
            weights = {
                name: parameter
                for name, parameter in merged.named_parameters()
                if re.search(r"\.layers\.0\.self_attn\.(q|k|v|out)_proj\.weight", name)
            }
            for key, expected in given(reference, "merged.").items():
                visual, layer, projection = re.fullmatch(LAYER + r"(\w+)\.weight", key).groups()
                tower = "vision" if visual else "text"
                ours = f"{tower}_model.encoder.layers.{layer}.self_attn.{projection.replace('proj_', '')}.weight"
                torch.testing.assert_close(weights[ours].detach(), expected, atol=1e-6, rtol=0)

    def test_ten_steps(self, case, inputs, shared):
        for name in (name for name in cases(shared, "clip_lora") if "nodropoutpath" not in name):
            model, reference, facts = case(name)
            losses, first = steps(model, inputs, facts, range(10), facts["optimizer"]["lrs"])
            torch.testing.assert_close(losses, reference["traj_loss"], **LOSSES)
            by_name = {id(p): n for n, p in model.named_parameters()}
            gradients = {key: first[by_name[id(p)]] for key, p in self.names(model).items()}
            torch.testing.assert_close(gradients, given(reference, "grad."), **GRADIENTS)
            torch.testing.assert_close(values(self.names(model)), given(reference, "final."), **VALUES)
            for names, key in (("base_classes", "final_logits"), ("novel_classes", "final_novel_logits")):
                answer = logits(model, inputs, facts, inputs[names])
                torch.testing.assert_close(answer, reference[key], **LOGITS_100)


class TestTwoStage:
    OURS = r".*\.(text|vision)_model\.base_layer\.encoder\.layers\.(\d+)\.layer_norm([12])\.modules_to_save\.default\.(weight|bias)"

    def norms(self, model):
        return tensors(model, self.OURS, lambda number, part: f"ln_{number}.{part}")

    def test_both_stages(self, load, inputs, shared):
        for name in cases(shared, "twosfs"):
            model, reference, facts = load(
                name,
                lambda chosen: TwoStageConfig(
                    towers=chosen["ln_modality"],
                    text_first_layer=chosen["ln_text_start"],
                    vision_first_layer=chosen["ln_vision_start"],
                    template=chosen["template"],
                ),
            )
            assert self.norms(model).keys() == set(facts["trained_parameters"])
            assert sum(p.numel() for p in model.parameters() if p.requires_grad) == facts["trainable_count"]
            answer = logits(model, inputs, facts, inputs["base_classes"])
            torch.testing.assert_close(answer, reference["logits"], **LOGITS)
            number, rates = facts["hyperparameters"]["stage1_steps"], facts["optimizer"]
            losses, first = steps(model, inputs, facts, range(number), rates["lrs_stage1"])
            by_name = {id(p): n for n, p in model.named_parameters()}
            gradients = {key: first[by_name[id(p)]] for key, p in self.norms(model).items()}
            torch.testing.assert_close(gradients, given(reference, "grad."), **GRADIENTS)
            answer = logits(model, inputs, facts, inputs["base_classes"], "eval_indices")
            torch.testing.assert_close(answer, reference["stage1_logits"], **LOGITS)

            model.start_class_head()
            ((_, rows),) = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
            torch.testing.assert_close(rows.detach(), reference["stage1.classifier"], **VALUES)
            more, first = steps(model, inputs, facts, range(number, 10), rates["lrs_stage2"])
            torch.testing.assert_close(torch.cat([losses, more]), reference["traj_loss"], **LOSSES)
            (gradient,) = first.values()
            torch.testing.assert_close(gradient, reference["grad.classifier"], **GRADIENTS)
            torch.testing.assert_close(rows.detach(), reference["final.classifier"], **VALUES)
            torch.testing.assert_close(values(self.norms(model)), given(reference, "final."), **VALUES)
            for names, key in (("base_classes", "final_logits"), ("novel_classes", "final_novel_logits")):
                answer = logits(model, inputs, facts, inputs[names], "eval_indices")
                torch.testing.assert_close(answer, reference[key], **LOGITS)

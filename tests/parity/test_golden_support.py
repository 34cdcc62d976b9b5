"""Equal to the authors' own code of the methods on features of a support set, through the public API alone."""

import json
from dataclasses import dataclass

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from peft_vprompt import CLAPConfig, TipAdapterConfig
from peft_vprompt.convert import convert_checkpoint


pytestmark = pytest.mark.core

LOGITS = {"atol": 5e-5, "rtol": 0}
LOGITS_100 = {"atol": 2e-4, "rtol": 0}
LOSSES = {"atol": 1e-4, "rtol": 0}
GRADIENTS = {"atol": 1e-6, "rtol": 1e-4}
VALUES = {"atol": 1e-5, "rtol": 0}


@dataclass
class Case:
    """A model of ours, what the authors' code gave, what it was told, and the images."""

    model: PeftModel
    reference: dict
    facts: dict
    images: Tensor
    labels: Tensor

    def batch(self, rows):
        return {"pixel_values": self.images[rows], "labels": self.labels[rows]}

    @property
    def parameter(self):
        (parameter,) = (p for p in self.model.parameters() if p.requires_grad)
        return parameter

    def logits(self):
        with torch.no_grad():
            return self.model.eval()(pixel_values=self.images[self.facts["logits_indices"]].flip(2)).logits


@pytest.fixture
def load(recipe, shared):
    def load(name, config_class, **fields) -> Case:
        folder = shared / "golden" / "field"
        facts = json.loads((folder / f"{name}.json").read_text())
        options = {"class_names": recipe.BASE_CLASSES, "tokenizer_name_or_path": str(shared / "clip-tokenizer")}
        options |= {ours: theirs(facts["hyperparameters"]) for ours, theirs in fields.items()}
        model = get_peft_model(recipe.build_clip(), config_class(**options))
        reference = load_file(folder / f"{name}.safetensors")
        return Case(model, reference, facts, recipe.make_inputs()["pixel_values"], torch.tensor(recipe.LABELS))

    return load


class Views:
    """Batches of labelled images; each pass gives another view of them, as an augmentation does."""

    def __init__(self, images, labels, views):
        self.images, self.labels = images, labels
        self.views = iter(views)

    def __iter__(self):
        view = {"image": self.images, "image.flip(3)": self.images.flip(3)}[next(self.views)]
        for rows in torch.arange(len(view)).split(4):
            yield {"pixel_values": view[rows], "labels": self.labels[rows]}


class TestTipAdapter:
    @pytest.fixture(params=["tip_adapter_vit"])
    def case(self, request, load):
        def make(train_keys):
            told = {"alpha": lambda h: float(h["alpha"]), "beta": lambda h: float(h["beta"])}
            told |= {"template": lambda h: h["templates"], "train_keys": lambda h: train_keys}
            case = load(request.param, TipAdapterConfig, **told)
            rows = case.facts["cache_indices"]
            views = Views(case.images[rows], torch.tensor(case.facts["cache_labels"]), case.facts["cache_views"])
            case.model.set_support(views, views=len(case.facts["cache_views"]))
            return case

        return make

    def validation(self, case):
        images = case.images + 0.5 * case.images.roll(-1, 0)
        return [{"pixel_values": images, "labels": torch.tensor(case.facts["val_labels"])}]

    def search(self, case, result):
        chosen, found = case.facts["hyperparameters"], case.facts[result]
        ours = case.model.search_cache(self.validation(case), scale=chosen["search_scale"], step=chosen["search_step"])
        assert ours.alpha == pytest.approx(found["alpha"]) and ours.beta == pytest.approx(found["beta"])
        config = case.model.active_peft_config
        assert (config.alpha, config.beta) == (ours.alpha, ours.beta)
        return ours

    def test_cache_and_search(self, case):
        case = case(train_keys=False)
        state = case.model.adapter_state("default")
        keys = next(value for name, value in state.items() if name.endswith("keys"))
        labels = next(value for name, value in state.items() if name.endswith("labels"))
        torch.testing.assert_close(keys, case.reference["param.cache_keys"], **VALUES)
        torch.testing.assert_close(F.one_hot(labels).float(), case.reference["cache_values"], rtol=0, atol=0)
        torch.testing.assert_close(case.logits(), case.reference["logits"], **LOGITS_100)
        found = self.search(case, "search_result_tip_adapter")
        assert found.accuracy == pytest.approx(case.facts["search_result_tip_adapter"]["val_accuracy"])
        torch.testing.assert_close(case.logits(), case.reference["searched_logits"], **LOGITS_100)

    def test_training_the_keys(self, case):
        case = case(train_keys=True)
        facts, reference = case.facts, case.reference
        told = {key: facts["optimizer"][key] for key in ("lr", "eps", "betas", "weight_decay")}
        optimizer = torch.optim.AdamW([case.parameter], **told)
        losses = []
        for rows, rate in zip(facts["traj_batches"], facts["optimizer"]["lrs"], strict=True):
            optimizer.param_groups[0]["lr"] = rate
            loss = case.model.train()(**case.batch(rows)).loss
            optimizer.zero_grad()
            loss.backward()
            if not losses:
                torch.testing.assert_close(case.parameter.grad, reference["grad.cache_keys"], **GRADIENTS)
            losses.append(loss.detach())
            optimizer.step()
        torch.testing.assert_close(torch.stack(losses), reference["traj_loss"], **LOSSES)
        torch.testing.assert_close(case.parameter.detach(), reference["final.cache_keys"], **VALUES)
        torch.testing.assert_close(case.logits(), reference["final_logits"], **LOGITS_100)
        case.parameter.data = reference["best.cache_keys"]
        self.search(case, "search_result_tip_adapter_f")


class TestCLAP:
    @pytest.fixture(params=["clap_l2_vit", "zslp_vit"])
    def case(self, request, load):
        told = {"constraint": lambda h: h["constraint"], "template": lambda h: h["dataset_template"]}
        case = load(request.param, CLAPConfig, **told)
        case.labels = torch.tensor(case.facts["train_labels"])
        if case.facts["hyperparameters"]["constraint"] == "l2":
            views = case.reference["feat.train_features"].unflatten(0, (len(case.facts["train_views"]), -1))
            case.model.set_support(views, case.labels[: views.shape[1]])
        return case

    def test_start(self, case):
        torch.testing.assert_close(case.parameter.detach(), case.reference["param.prototypes"], **VALUES)
        torch.testing.assert_close(case.parameter.detach(), case.reference["base_text_features"], **VALUES)
        torch.testing.assert_close(case.logits(), case.reference["logits"], **LOGITS)
        if "alpha_c" in case.reference:
            penalties = torch.tensor(case.model.active_peft_config.class_penalties)
            torch.testing.assert_close(penalties, case.reference["alpha_c"], **VALUES)

    def test_converted(self, case, recipe, shared, tmp_path):
        theirs = {"prototypes": "final.prototypes", "base_text_features": "base_text_features"}
        checkpoint = {name: case.reference[key] for name, key in theirs.items()}
        told = {"class_names": recipe.BASE_CLASSES, "constraint": case.facts["hyperparameters"]["constraint"]}
        told["tokenizer_name_or_path"] = str(shared / "clip-tokenizer")
        convert_checkpoint(checkpoint, "clap", tmp_path, base_model=recipe.build_clip(), **told)
        case.model = PeftModel.from_pretrained(recipe.build_clip(), str(tmp_path))
        torch.testing.assert_close(case.logits(), case.reference["final_logits"], **LOGITS)

    def test_penalties_of_images(self, case):
        if "alpha_c" not in case.reference:
            pytest.skip("ZS-LP holds no class")
        rows = slice(0, len(case.images))
        case.model.set_support(Views(case.images, case.labels[rows], case.facts["train_views"]), views=2)
        penalties = torch.tensor(case.model.active_peft_config.class_penalties)
        torch.testing.assert_close(penalties, case.reference["alpha_c"], **VALUES)

    def test_ten_steps(self, case):
        facts, reference = case.facts, case.reference
        features = F.normalize(reference["feat.train_features"], dim=-1)
        told = {key: facts["optimizer"][key] for key in ("lr", "momentum", "weight_decay", "dampening", "nesterov")}
        optimizer = torch.optim.SGD([case.parameter], **told)
        losses, constraints = [], []
        for step, rows in enumerate(facts["traj_batches"]):
            output = case.model.train()(image_features=features[rows], labels=case.labels[rows])
            optimizer.zero_grad()
            output.loss.backward()
            if step < 2:
                gradient = reference["grad.prototypes" if step == 0 else "grad_second_step.prototypes"]
                torch.testing.assert_close(case.parameter.grad, gradient, **GRADIENTS)
            losses.append(output.loss.detach())
            constraints.append(torch.zeros(()) if output.aux_loss is None else output.aux_loss.detach())
            optimizer.step()
        torch.testing.assert_close(torch.stack(losses), reference["traj_loss"], **LOSSES)
        torch.testing.assert_close(torch.stack(constraints), reference["traj_constraint"], **LOSSES)
        torch.testing.assert_close(case.parameter.detach(), reference["final.prototypes"], **VALUES)
        torch.testing.assert_close(case.logits(), reference["final_logits"], **LOGITS)

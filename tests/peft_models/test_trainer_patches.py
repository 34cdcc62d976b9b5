"""What the stock Trainer does with our PEFT models beside training them."""

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from peft_vprompt import VisualPromptConfig
from tests.support.models import images, labels, tiny_clip, tiny_vit


def arguments(folder, **options) -> TrainingArguments:
    common = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "remove_unused_columns": False}
    return TrainingArguments(str(folder), **common | options)


def contrastive_rows():
    ids = torch.tensor(
        [[136, 3, 74, 12, 20, 137], [136, 5, 75, 30, 31, 137], [136, 6, 7, 8, 9, 137], [136, 9, 8, 7, 6, 137]]
    )
    return [{"pixel_values": image, "input_ids": text} for image, text in zip(images(), ids, strict=True)]


def collate(rows) -> dict:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} | {"return_loss": True}


@pytest.mark.parametrize("case", [("maple", "maple"), ("visual_prompt", "deep")], ids="-".join)
def test_contrastive_training_has_a_best_model(case, make, tmp_path):
    model = get_peft_model(tiny_clip(), make(*case))
    options = {
        "max_steps": 2,
        "eval_steps": 1,
        "save_steps": 1,
        "eval_strategy": "steps",
        "load_best_model_at_end": True,
    }
    rows = contrastive_rows()
    trainer = Trainer(model, arguments(tmp_path, **options), collate, rows, rows)
    trainer.train()
    assert trainer.state.best_metric == pytest.approx(trainer.evaluate()["eval_loss"])
    lora = get_peft_model(tiny_clip(), LoraConfig(target_modules=["q_proj"]))
    assert "eval_loss" in Trainer(lora, arguments(tmp_path), collate, rows, rows).evaluate()


def test_a_card_with_tags_of_the_users_keeps_the_snippet(tmp_path):
    """The Trainer then writes our tags into its own card, which is not ours for that."""
    model = get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=2))
    rows = [{"pixel_values": i, "labels": k} for i, k in zip(images(), labels().tolist(), strict=True)]
    trainer = Trainer(model, arguments(tmp_path, max_steps=1), train_dataset=rows)
    trainer.train()
    trainer.save_model()
    for _ in range(2):
        trainer.create_model_card(tags=["mine"], license="mit")
        card = ModelCard.load(tmp_path / "README.md")
        assert card.text.count("import peft_vprompt") == 1 and "Training hyperparameters" in card.text
        assert {"mine", "peft_vprompt", "generated_from_trainer"} <= set(card.data.tags)


def test_classification_has_labels_still(make, tmp_path):
    model = get_peft_model(tiny_clip(), make("maple", "maple"))
    rows = [{"pixel_values": i, "labels": k} for i, k in zip(images(), labels().tolist(), strict=True)]
    seen = []
    trainer = Trainer(
        model, arguments(tmp_path), eval_dataset=rows, compute_metrics=lambda p: seen.append(p.label_ids) or {}
    )
    assert "eval_loss" in trainer.evaluate()
    assert seen[0].tolist() == labels().tolist()


@pytest.mark.parametrize("is_second", [False, True])
def test_an_adapter_named_like_a_repository_is_resumed(is_second, tmp_path):
    rows = [{"pixel_values": i, "labels": k} for i, k in zip(images(), labels().tolist(), strict=True)]

    def trainer(steps, seed=0):
        torch.manual_seed(seed)
        config = VisualPromptConfig(num_virtual_tokens=2)
        model = get_peft_model(tiny_vit(), config, adapter_name="default" if is_second else "me/mine")
        if is_second:
            model.add_adapter("me/mine", config)
            model.set_adapter("me/mine")
        options = {"max_steps": steps, "save_steps": 1, "lr_scheduler_type": "constant", "learning_rate": 0.1}
        return Trainer(model, arguments(tmp_path, **options), train_dataset=rows)

    trainer(1).train()
    resumed = trainer(2, seed=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    whole = trainer(2)
    whole.train()
    found, expected = resumed.model.adapter_state("me/mine"), whole.model.adapter_state("me/mine")
    assert all(torch.allclose(found[key], value, atol=1e-6) for key, value in expected.items())


@pytest.mark.parametrize("is_second", [False, True])
def test_the_best_of_a_named_adapter_is_loaded(is_second, tmp_path):
    """Also where an adapter of PEFT's default name lies beside it."""
    config = VisualPromptConfig(num_virtual_tokens=2)
    model = get_peft_model(tiny_vit(), config, adapter_name="default" if is_second else "mine")
    if is_second:
        model.add_adapter("mine", config)
        model.set_adapter("mine")
    rows = [{"pixel_values": i, "labels": k} for i, k in zip(images(), labels().tolist(), strict=True)]
    options = {"max_steps": 3, "eval_steps": 1, "save_steps": 1, "eval_strategy": "steps", "learning_rate": 5.0}
    trainer = Trainer(
        model,
        arguments(tmp_path, load_best_model_at_end=True, greater_is_better=False, **options),
        train_dataset=rows,
        eval_dataset=rows,
    )
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert min(losses) != losses[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses))

"""Publishing and loading by the Hub's real client, against a Hub on this machine (`tests/support/hub.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from peft_vprompt.peft_models.publishing import hub_id
from tests.support.hub import serve


ROOT = Path(__file__).parents[2]

#: What a user does, in a process of its own: the client reads its environment once.
PROGRAM = """
import json, sys, warnings
import torch
from huggingface_hub import create_repo, upload_folder
from pathlib import Path
from peft import PeftModel, get_peft_model
from transformers import AutoTokenizer, CLIPModel, Trainer, TrainingArguments, ViTForImageClassification
import peft_vprompt
from peft_vprompt import AutoPeftModelForImageClassification, MaPLeConfig, VisualPromptConfig
from peft_vprompt.errors import AdapterMismatchError
from tests.support.hub import TOKEN
from tests.support.models import CLASS_NAMES, disturb, images, labels, logits, tiny_clip, tiny_tokenizer, tiny_vit

torch.set_num_threads(1)
folder = Path(sys.argv[1])
private = {"private": True, "token": TOKEN}
tiny_clip().push_to_hub("me/clip", **private)
tiny_tokenizer().push_to_hub("me/clip", token=TOKEN)
base = CLIPModel.from_pretrained("me/clip", token=TOKEN)
tokenizer = AutoTokenizer.from_pretrained("me/clip", token=TOKEN)
model = get_peft_model(base, MaPLeConfig(prompt_depth=2, prompt_init="random"))
model.set_class_names(CLASS_NAMES, tokenizer=tokenizer)
expected = logits(disturb(model))
model.push_to_hub("me/maple", tags=["mine"], **private)
for revision in ("v1", None):
    if revision:
        model.push_to_hub("me/maple", token=TOKEN, revision=revision)
    loaded = AutoPeftModelForImageClassification.from_pretrained("me/maple", token=TOKEN, revision=revision)
    assert torch.equal(logits(loaded), expected)
again = PeftModel.from_pretrained(CLIPModel.from_pretrained("me/clip", token=TOKEN), "me/maple", token=TOKEN)
assert torch.equal(logits(again), expected)
model.add_adapter("second", VisualPromptConfig(num_virtual_tokens=2, class_names=CLASS_NAMES))
model.set_adapter("second")
second = logits(disturb(model))
model.push_to_hub("me/two", **private)
for call in (
    lambda: AutoPeftModelForImageClassification.from_pretrained("me/two"),
    lambda: AutoPeftModelForImageClassification.from_pretrained("me/nothing"),
):
    try:
        call()
    except ValueError as error:
        assert "no such repository, or it is private" in str(error) and "token=" in str(error), error
    else:
        raise AssertionError("read without a token")
loaded = AutoPeftModelForImageClassification.from_pretrained("me/two", token=TOKEN, subfolder="second")
assert torch.equal(logits(loaded), second)

bomb = folder / "bomb"
get_peft_model(tiny_clip(), VisualPromptConfig(num_virtual_tokens=2, class_names=["a", "b"])).save_pretrained(bomb)
config = json.loads((bomb / "adapter_config.json").read_text()) | {"num_virtual_tokens": 200_000}
(bomb / "adapter_config.json").write_text(json.dumps(config))
create_repo("me/bomb", **private)
upload_folder(repo_id="me/bomb", folder_path=bomb, token=TOKEN)
try:
    PeftModel.from_pretrained(tiny_clip(), "me/bomb", token=TOKEN)
except AdapterMismatchError as error:
    assert "asks for more numbers than the 48 of its file" in str(error), error
else:
    raise AssertionError("more numbers were made than the file holds")

tiny_vit().save_pretrained(folder / "vit")
vit = get_peft_model(ViTForImageClassification.from_pretrained(folder / "vit"), VisualPromptConfig(num_virtual_tokens=2))
vit.push_to_hub("me/local")
try:
    AutoPeftModelForImageClassification.from_pretrained("me/local")
except ValueError as error:
    assert "does not say where its base model is" in str(error)
rows = [{"pixel_values": image, "labels": label} for image, label in zip(images(), labels().tolist())]
arguments = TrainingArguments(
    str(folder / "run"), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
    push_to_hub=False, hub_model_id="me/trained", hub_token=TOKEN,
)
trainer = Trainer(vit, arguments, train_dataset=rows)
trainer.train()
trainer.push_to_hub()
loaded = PeftModel.from_pretrained(ViTForImageClassification.from_pretrained(folder / "vit"), "me/trained", token=TOKEN)
assert torch.equal(logits(loaded), logits(vit.eval()))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The repositories after a user has published some adapters, and the folder that the user worked in."""
    folder = tmp_path_factory.mktemp("hub")
    with serve() as hub:
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
        variables |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder)],
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        yield hub.repositories, folder


def card_of(repository, revision="main") -> ModelCard:
    return ModelCard(repository.revisions[revision]["README.md"].decode())


def test_our_card_is_published(published):
    repositories, _ = published
    card = card_of(repositories["me/maple"])
    assert (
        "import peft_vprompt" in card.text
        and "MaPLe adapter" in card.text
        and 'from_pretrained("me/clip"' in card.text
    )
    assert {"peft_vprompt", "prompt-learning", "mine", "base_model:adapter:me/clip"} <= set(card.data.tags)
    assert card.data.base_model == "me/clip" and card.data.library_name == "peft"
    assert "v1" in repositories["me/maple"].revisions


def test_a_trainers_card_keeps_ours(published):
    repositories, _ = published
    card = card_of(repositories["me/trained"])
    assert "Training hyperparameters" in card.text and "import peft_vprompt" in card.text
    assert {"peft_vprompt", "generated_from_trainer"} <= set(card.data.tags)


def test_a_small_adapter_of_the_hub_is_compared_with_its_file(published):
    """The program has been refused by what it asks for, not by shapes that did not fit when all was made."""
    repositories, _ = published
    config = json.loads(repositories["me/bomb"].revisions["main"]["adapter_config.json"])
    assert config["num_virtual_tokens"] == 200_000


@pytest.mark.parametrize("name", ["me/maple", "me/two", "me/local", "me/trained"])
def test_no_local_path_leaves_the_machine(published, name):
    repositories, folder = published
    files = repositories[name].revisions["main"]
    assert "adapter_config.json" in files
    for file, data in files.items():
        if file.endswith((".json", ".md")):
            assert str(folder) not in data.decode(), file
    named = json.loads(files["adapter_config.json"])["base_model_name_or_path"]
    assert named == ("me/clip" if name in ("me/maple", "me/two") else None)


@pytest.mark.parametrize(
    ("name", "published_as"),
    [
        (None, None),
        ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16"),
        ("/home/me/clip", None),
        ("./clip", None),
        (r"C:\models\clip", None),
        (
            "/home/me/.cache/huggingface/hub/models--openai--clip-vit-base-patch16/snapshots/0f3/",
            "openai/clip-vit-base-patch16",
        ),
    ],
)
def test_names_by_which_others_find_a_model(name, published_as):
    assert hub_id(name) == published_as

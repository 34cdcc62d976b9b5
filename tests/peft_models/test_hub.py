"""Publishing and loading by the Hub's real client, against a Hub on this machine (`tests/support/hub.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import get_peft_model
from transformers import ViTForImageClassification

from peft_vprompt import VisualPromptConfig
from peft_vprompt.peft_models.publishing import hub_id
from tests.support.hub import TOKEN, serve
from tests.support.models import tiny_vit


ROOT = Path(__file__).parents[2]
WEIGHTS = "adapter_model.safetensors"
#: Folder of the user, which nobody else is to read of.
HOME = "home-of-alice"

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
vit.push_to_hub("me/local", token=TOKEN)
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

kept = dict(
    report_to="none", use_cpu=True, disable_tqdm=True, eval_strategy="steps", save_strategy="steps", eval_steps=1,
    save_steps=1, logging_steps=1, load_best_model_at_end=True, metric_for_best_model="loss", push_to_hub=True,
    hub_strategy="checkpoint", hub_always_push=True, hub_model_id="me/kept", hub_token=TOKEN,
)
for steps, resumed in ((2, None), (3, True)):
    arguments = TrainingArguments(str(folder / "kept"), max_steps=steps, save_total_limit=1, **kept)
    trainer = Trainer(vit, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train(resume_from_checkpoint=resumed)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.is_absolute() and best.is_dir(), best

import os
from tests.support.command_line import QUICK, train, vprompt
from transformers import CLIPImageProcessorPil
from tests.support.saved_models import save_colours

os.chdir(folder)
size = {"height": 32, "width": 32}
CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).push_to_hub("me/clip", token=TOKEN)
colours = save_colours(folder / "colours.parquet", 4)
of_hub = ("--method", "coop", "--base-novel", *QUICK, "--push-to-hub")
shown = train(folder / "refused", "me/clip", colours, *of_hub, "me/colours", code=2)
assert "Cannot publish to 'me/colours'" in shown and "hf auth login" in shown, shown
assert not (folder / "refused").exists()
os.environ["HF_TOKEN"] = TOKEN
shown = train(folder / "here", "me/clip", colours, *of_hub, "me/colours", "--private", "--language", "en")
assert "Published: " in shown and "me/colours/commit/" in shown, shown
of_colours = ("--data", colours, "--label-column", "colour", "--new-classes")
shown = vprompt("evaluate", "--adapter", "me/colours", *of_colours)
assert "Accuracy on all (4 classes" in shown, shown
shown = vprompt("inspect", "me/colours")
assert "CoOp" in shown and "Nearest words" in shown and "blue / green" in shown, shown

from huggingface_hub import ModelCard
from PIL import Image

Image.new("RGB", (40, 30), "red").save("image.jpg")
scope = {}
exec(ModelCard.load("me/colours").text.split("```python\\n")[1].split("```")[0], scope)
assert set(scope["scores"]) == {"blue", "green"} and abs(sum(scope["scores"].values()) - 1) < 1e-5

from peft import LoraConfig
from transformers import ViTImageProcessorPil
from peft_vprompt.experiments.sharing import publish

ViTImageProcessorPil(size=size).save_pretrained(folder / "vit")
plain = LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"])
get_peft_model(ViTForImageClassification.from_pretrained(folder / "vit"), plain).save_pretrained(folder / "lora")
publish(folder / "lora", "me/lora", str(folder / "vit"))

before = {path.name: path.read_bytes() for path in (folder / "here").iterdir() if path.is_file()}
shown = vprompt("push", folder / "here", "me/broken", code=2)
assert "is whole and stays; publishing it to 'me/broken' failed: 403" in shown or "Forbidden" in shown, shown
assert f"vprompt push {folder}/here me/broken" in shown, shown
card = folder / "here" / "README.md"
card.write_text(card.read_text().replace("## Limits", "By hand.\\n\\n## Limits"))
before["README.md"] = card.read_bytes()
vprompt("push", folder / "here", "me/edited", "--license", "mit")
assert {path.name: path.read_bytes() for path in (folder / "here").iterdir() if path.is_file()} == before
"""


@pytest.fixture(scope="module")
def hub_of_user(tmp_path_factory):
    """A Hub after a user has published some adapters, and the folder that the user worked in."""
    folder = tmp_path_factory.mktemp("hub") / HOME
    folder.mkdir()
    with serve() as hub:
        hub.broken["/me/broken/commit"] = 403
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
        variables |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder)],
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        yield hub, folder


@pytest.fixture(scope="module")
def published(hub_of_user):
    hub, folder = hub_of_user
    return hub.repositories, folder


def test_weights_went_by_lfs_and_a_failed_upload_left_nothing(hub_of_user):
    hub, _ = hub_of_user
    assert "POST /me/maple.git/info/lfs/objects/batch" in hub.seen
    assert any(request.startswith("PUT /lfs/") for request in hub.seen)
    assert not hub.repositories["me/broken"].revisions["main"]


def test_nothing_that_was_sent_names_the_machine_or_the_token(hub_of_user):
    """Neither a path, whose folders have the user's name, nor the token, in any byte of any file."""
    hub, folder = hub_of_user
    assert len(hub.received) > 20 and b"adapter_model.safetensors" in b"".join(hub.received)
    for data in hub.received:
        for secret in (str(folder.parent), HOME, TOKEN):
            assert secret.encode() not in data, data[:300]
    assert "training_args.bin" in hub.repositories["me/trained"].revisions["main"]
    state = json.loads(hub.repositories["me/kept"].revisions["main"]["last-checkpoint/trainer_state.json"])
    assert state["best_model_checkpoint"].startswith("checkpoint-")


def test_the_card_of_a_trained_adapter(published):
    repositories, _ = published
    card = card_of(repositories["me/colours"])
    assert repositories["me/colours"].private
    assert (card.data.language, card.data.base_model, card.data.base_model_relation) == ("en", "me/clip", "adapter")
    assert {result.metric_name for result in card.data.eval_results} == {
        "Accuracy (base)", "Accuracy (novel)", "Accuracy (hm)"
    }  # fmt: skip
    assert "| base: the classes trained on |" in card.text and '"me/colours")' in card.text
    assert set(repositories["me/colours"].revisions["main"]) == {"README.md", "adapter_config.json", WEIGHTS}


def test_a_card_edited_by_hand_is_published_with_its_text(published):
    repositories, _ = published
    card = card_of(repositories["me/edited"])
    assert "By hand." in card.text and card.data.license == "mit" and card.data.base_model == "me/clip"
    assert len(card.data.eval_results) == 3


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


@pytest.mark.parametrize("name", ["me/maple", "me/two", "me/local", "me/trained", "me/lora"])
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


def test_no_config_that_is_published_names_a_folder_whatever_its_adapter_is_called(tmp_path):
    tiny_vit().save_pretrained(tmp_path / "base")
    base = ViTForImageClassification.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, VisualPromptConfig())
    for name in ("second", "me/mine"):
        model.add_adapter(name, VisualPromptConfig(base_model_name_or_path=str(tmp_path / "base")))
    with model.publishing():
        model.save_pretrained(tmp_path / "out")
    configs = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("adapter_config.json")]
    assert [config["base_model_name_or_path"] for config in configs] == [None] * 3

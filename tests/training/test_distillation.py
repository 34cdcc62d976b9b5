"""Distillation: the teacher's class features and answers, and images to learn them on."""

import pytest
import torch
from datasets import Dataset, Features, Image
from peft import PeftModel, get_peft_model
from PIL import Image as PILImage
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil

from peft_vprompt import PromptKDConfig
from peft_vprompt.data import EvalTransform, TrainTransform
from peft_vprompt.errors import ClassNamesError, UnsupportedModelError
from peft_vprompt.training import DistillationRows, take_teacher, teacher_logits
from tests.support.models import CLASS_NAMES, NEW_NAMES, disturb, images, labels, tiny_clip


def processor(edge):
    return CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge})


@pytest.fixture
def teacher(make):
    """A MaPLe adapter on another CLIP."""
    return disturb(get_peft_model(tiny_clip(3), make("maple", "maple")))


@pytest.fixture
def student(make):
    return get_peft_model(tiny_clip(), make("promptkd", "own-space", distillation_weight=7.0, temperature=2.0))


@pytest.fixture
def pictures():
    noise = (torch.rand(6, 40, 50, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    rows = {"image": [PILImage.fromarray(each) for each in noise]}
    return Dataset.from_dict(rows, features=Features(image=Image()))


def test_the_loss_is_the_divergence_from_the_teacher(student):
    answers = torch.randn(4, 5, generator=torch.Generator().manual_seed(2)).softmax(-1)
    output = disturb(student).train()(pixel_values=images(), labels=answers)
    ours = (output.logits / 2).log_softmax(-1)
    expected = 7 * 4 * (answers * (answers.log() - ours)).sum() / (4 * 5)
    torch.testing.assert_close(output.loss, expected)
    plain = student(pixel_values=images(), labels=labels())
    torch.testing.assert_close(plain.loss, F.cross_entropy(plain.logits, labels()))


def test_a_student_has_its_teachers_class_features(student, teacher, tmp_path):
    take_teacher(student, teacher)
    expected = teacher.encode_classes()
    assert torch.equal(student.encode_classes(), expected)
    disturb(student)
    student.set_class_names([CLASS_NAMES[3], CLASS_NAMES[1].replace(" ", "_")])
    assert torch.equal(student.encode_classes(), expected[[3, 1]])
    some = student(pixel_values=images()).logits
    student.set_class_names(CLASS_NAMES)
    whole = student(pixel_values=images()).logits
    torch.testing.assert_close(some, whole[:, [3, 1]])
    with pytest.raises(ClassNamesError, match="a teacher's feature for each of its 5 classes"):
        student.set_class_names(NEW_NAMES)
    student.train()(pixel_values=images(), labels=whole.softmax(-1))  # moves the running statistics
    expected = student.eval()(pixel_values=images()).logits
    assert not torch.equal(expected, whole)
    student.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path))
    assert torch.equal(loaded(pixel_values=images()).logits, expected)


def test_training_on_some_classes_keeps_all_of_them(student, tmp_path):
    student.set_class_names(CLASS_NAMES[:2])
    student.train()(pixel_values=images(), labels=torch.tensor([0, 1, 1, 0])).loss.backward()
    student.save_pretrained(tmp_path)
    assert PeftModel.from_pretrained(tiny_clip(), str(tmp_path)).class_names == CLASS_NAMES


def test_what_does_not_fit_is_refused(student, teacher, make, tokenizer_path):
    config = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path, "prompt_depth": 1}
    waiting = get_peft_model(tiny_clip(), PromptKDConfig(**config, teacher_dim=20)).eval()
    with pytest.raises(ClassNamesError, match="waits for a teacher's class features. Call"):
        waiting(pixel_values=images())
    with pytest.raises(
        ValueError, match="features of size teacher_dim=20. Received: 16. Make the adapter with teacher_dim=16"
    ):
        take_teacher(waiting, teacher)
    with pytest.raises(UnsupportedModelError, match="Expected a PromptKD adapter.*MAPLE. Use PromptKDConfig"):
        take_teacher(teacher, teacher)
    for method, case, message in (("cocoop", "words", "CoCoOp"), ("read_only_prompt", "rpo", "Received 4 for each")):
        other = get_peft_model(tiny_clip(), make(method, case))
        with pytest.raises(UnsupportedModelError, match=message):
            take_teacher(student, other)
    with pytest.raises(ValueError, match="teacher_dim=20. Use logit_consistency_weight"):
        PromptKDConfig(**config, teacher_dim=20, image_consistency_weight=1.0)
    with pytest.raises(ClassNamesError, match="one feature of the teacher for each class"):
        PromptKDConfig()


def test_answers_are_of_the_crops_that_the_student_sees(teacher, pictures, tmp_path):
    transform = TrainTransform(processor(32))
    options = {"views": 3, "seed": 5, "cache_dir": tmp_path}
    logits = teacher_logits(teacher, pictures, transform, CLASS_NAMES, **options)
    assert logits.shape == (3, 6, 5)
    rows = DistillationRows(pictures, transform, logits, temperature=2.0, seed=5)
    for epoch in (0, 2, 4):
        rows.set_epoch(epoch)
        batch = rows.__getitems__([4, 1])
        with torch.no_grad():
            seen = teacher(pixel_values=torch.stack([row["pixel_values"] for row in batch])).logits
        torch.testing.assert_close((seen / 2).softmax(-1), torch.stack([row["labels"] for row in batch]))
        torch.testing.assert_close(seen, logits[epoch % 3, [4, 1]], atol=1e-5, rtol=1e-4)


def test_a_larger_teacher_sees_the_same_part(pictures):
    """Crops of one image at two sizes are the same part of it, flipped alike."""
    ramp = PILImage.linear_gradient("L").resize((90, 70)).rotate(30).convert("RGB")
    rows = Dataset.from_dict({"image": [ramp]}, features=Features(image=Image()))
    small, large = (
        DistillationRows(rows, TrainTransform(processor(edge), scale=(0.3, 0.6)), torch.zeros(4, 1, 2), seed=1)
        for edge in (32, 64)
    )
    for epoch in range(4):
        small.set_epoch(epoch)
        large.set_epoch(epoch)
        shrunk = F.interpolate(torch.as_tensor(large[0]["pixel_values"])[None], 32, mode="area")[0]
        assert (shrunk - torch.as_tensor(small[0]["pixel_values"])).abs().mean() < 0.1


def test_answers_are_computed_once(teacher, pictures, tmp_path, monkeypatch):
    transform = EvalTransform(processor(32))
    first = teacher_logits(teacher, pictures, transform, CLASS_NAMES, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    calls = []
    original = teacher.forward
    monkeypatch.setattr(teacher, "forward", lambda **kw: calls.append(1) or original(**kw))
    assert torch.equal(teacher_logits(teacher, pictures, transform, CLASS_NAMES, cache_dir=tmp_path), first)
    assert not calls
    whole = path.read_bytes()
    damaged = [
        whole[:100],
        whole[:-4],
        whole[:-8] + bytes(8),
        whole[:-3] + b"\x7f" + whole[-2:],
        b"",
        b"text",
        whole + b"x",
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=f"teacher's answers in '{path}' are damaged.*computed anew"):
            assert torch.equal(teacher_logits(teacher, pictures, transform, CLASS_NAMES, cache_dir=tmp_path), first)
        assert path.with_suffix(".damaged").read_bytes() == content and path.read_bytes() == whole
    assert len(calls) == len(damaged)
    calls.clear()
    teacher_logits(teacher, pictures, transform, NEW_NAMES, cache_dir=tmp_path)
    with torch.no_grad():
        next(p for p in teacher.parameters() if p.requires_grad).add_(0.1)
    teacher_logits(teacher, pictures, transform, CLASS_NAMES, cache_dir=tmp_path)
    assert len(calls) == 2
    with pytest.raises(ValueError, match="Expected views=1 without a random augmentation"):
        teacher_logits(teacher, pictures, transform, CLASS_NAMES, views=2)
    with pytest.raises(ValueError, match="Expected the teacher's logits .augmentations, 6, classes"):
        DistillationRows(pictures, transform, torch.zeros(1, 5, 5))

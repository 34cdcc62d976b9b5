"""Terms that hold any method near the frozen model, and gradients that never go against it."""

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F

from peft_vprompt import ContextOptConfig, ProGradConfig, VisualPromptConfig
from peft_vprompt.tuners.base.registry import PROMPT_METHODS
from peft_vprompt.tuners.prograd.gradient_projection import guide_gradients, project
from tests.support.models import CONFIGS, disturb, images, labels, tiny_clip, tiny_vit
from tests.support.replicas import replica_of


WEIGHTS = {"text_consistency_weight": 2.0, "image_consistency_weight": 3.0, "logit_consistency_weight": 5.0}
FIRST_CASES = [(method, next(iter(CONFIGS[method]))) for method in PROMPT_METHODS]


@pytest.mark.parametrize("distance", ["cosine", "l1"])
@pytest.mark.parametrize(("method", "case"), FIRST_CASES, ids="-".join)
def test_any_method_takes_the_terms(method, case, distance, make):
    config = make(method, case, **WEIGHTS, consistency_distance=distance)
    model = disturb(get_peft_model(tiny_clip(), config))
    with torch.no_grad():
        image, text = model.encode_images(images()), model.encode_classes(*([images()] if method == "cocoop" else []))
        output = model(pixel_values=images(), labels=labels(), output_aux_loss=True)
        with model.disable_adapter():
            frozen = {"image": model.encode_images(images()), "text": model.encode_classes()}
            logits = model(pixel_values=images()).logits
    if method == "mmrl":
        image = image[:, 0]  # the class token's; the tokens' own feature is free
    expected = {}
    for name, ours in {"text": text, "image": image}.items():
        # Every prompt of a read-only method, and every image of a conditional one, counts alike.
        theirs = frozen[name].unsqueeze(1) if image.ndim == 3 else frozen[name]
        theirs = theirs.expand_as(ours)
        cosine = 1 - (F.normalize(ours, dim=-1) * theirs).sum(-1).mean()
        expected[f"{name}_consistency"] = cosine if distance == "cosine" else (ours - theirs).abs().mean()
    chances = logits.softmax(-1)
    divergence = (chances * (logits.log_softmax(-1) - output.logits.log_softmax(-1))).sum() / logits.numel()
    expected["logit_consistency"] = divergence
    weighted = {name: WEIGHTS[f"{name}_weight"] * value for name, value in expected.items()}
    if method == "clap":  # has a term of its own
        weighted["constraint"] = output.aux_losses["constraint"]
    torch.testing.assert_close(output.aux_losses, weighted, atol=2e-6, rtol=1e-4)
    if method != "mmrl":  # whose classification loss is that of two predictions
        torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels()) + sum(weighted.values()))


def test_a_model_without_a_joint_space_has_no_such_terms():
    with pytest.raises(ValueError, match="Received: image_consistency_weight=1.0 on a model without a text tower"):
        get_peft_model(tiny_vit(), VisualPromptConfig(image_consistency_weight=1.0))


@pytest.fixture
def gradients(tokenizer_path):
    """Gradients of the context by two losses, and the model."""
    config = ProGradConfig(
        class_names=["cat", "dog", "sea lion", "fox", "land"],
        tokenizer_name_or_path=tokenizer_path,
        prompt_init="random",
        num_virtual_tokens=4,
    )
    model = disturb(get_peft_model(tiny_clip(), config), seed=5).train()
    (context,) = [p for p in model.parameters() if p.requires_grad]

    def gradient(backward) -> torch.Tensor:
        context.grad = None
        backward(lambda rows: model(pixel_values=images(8)[rows], labels=labels(8)[rows]).loss)
        return context.grad.clone()

    def plain(rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of the cross-entropy and of the distance from the frozen model, by plain autograd."""
        output = model.eval()(pixel_values=images(8)[rows])
        with torch.no_grad(), model.disable_adapter():
            frozen = model(pixel_values=images(8)[rows]).logits.softmax(-1)
        text = model.class_name_classifier.texts.encode(model.class_name_classifier.classes, None)
        logits = model.class_name_classifier.scaled(model.encode_images(images(8)[rows]).detach() @ text.t())
        torch.testing.assert_close(logits.detach(), output.logits.detach())
        (loss,) = torch.autograd.grad(F.cross_entropy(logits, labels(8)[rows]), context, retain_graph=True)
        (guide,) = torch.autograd.grad(F.cross_entropy(logits, frozen), context)
        model.train()
        return loss, guide

    return gradient, plain


ROWS = [[0, 1, 2, 3], [4, 5, 6, 7], [0, 2, 4, 6], [1, 5]]


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_a_gradient_never_goes_against_the_frozen_model(gradients, rows):
    gradient, plain = gradients
    loss, guide = plain(rows)
    ours = gradient(lambda of: of(rows).backward())
    along = (loss * guide).sum() / guide.norm() ** 2
    expected = loss - along * guide if along < 0 else loss
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert (ours * guide).sum() / guide.norm() > -1e-4


def test_accumulated_passes_are_projected_one_by_one(gradients):
    gradient, _ = gradients
    alone = [gradient(lambda of, rows=rows: (of(rows) / 2).backward()) for rows in ROWS[:2]]
    together = gradient(lambda of: [(of(rows) / 2).backward() for rows in ROWS[:2]])
    torch.testing.assert_close(together, alone[0] + alone[1])


def test_one_pass_through_two_calls_takes_the_sum_of_their_directions(gradients):
    gradient, plain = gradients
    (loss, guide), (other_loss, other_guide) = (plain(rows) for rows in ROWS[:2])
    ours = gradient(lambda of: (of(ROWS[0]) + of(ROWS[1])).backward())
    torch.testing.assert_close(ours, project(loss + other_loss, guide + other_guide, 1.0), atol=1e-5, rtol=1e-4)


def test_a_call_that_nobody_differentiates_leaves_nothing_behind(gradients):
    gradient, _ = gradients
    expected = gradient(lambda of: of(ROWS[0]).backward())
    ours = gradient(lambda of: (of(ROWS[1]), of(ROWS[0]).backward()))
    assert torch.equal(ours, expected)


def test_a_direction_of_zeros_changes_nothing():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    logits = guide_gradients(parameter * 3, (parameter * 0).sum(), [parameter], 1.0)
    logits.sum().backward()
    assert torch.equal(parameter.grad, torch.tensor([3.0, 3.0]))


def test_a_share_of_the_opposite_part_is_taken_out():
    against = project(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 4.0]), 0.25)
    torch.testing.assert_close(against, torch.tensor([1.0, -1.5]))


def test_a_long_context_starts_with_zeros_before_the_words(tokenizer_path):
    words = {"prompt_init_text": "a photo of a", "tokenizer_name_or_path": tokenizer_path, "class_names": ["cat"]}
    model = get_peft_model(tiny_clip(), ProGradConfig(num_virtual_tokens=6, **words))
    (context,) = [p.detach()[0] for p in model.parameters() if p.requires_grad]
    coop = get_peft_model(tiny_clip(), ContextOptConfig(prompt_init="text", **words))
    (expected,) = [p.detach()[0] for p in coop.parameters() if p.requires_grad]
    assert not context[:2].any()
    assert torch.equal(context[2:], expected)


def test_more_words_than_context_tokens_are_refused():
    with pytest.raises(ValueError, match="at least as many context tokens as the 4 words.*num_virtual_tokens=3"):
        ProGradConfig(num_virtual_tokens=3)


def test_copies_of_data_parallel_are_refused(make):
    model = get_peft_model(tiny_clip(), make("prograd", next(iter(CONFIGS["prograd"])))).train()
    with pytest.raises(ValueError, match=r"ProGradConfig changes the gradients.*torchrun.*CUDA_VISIBLE_DEVICES=0"):
        replica_of(model)(pixel_values=images(), labels=labels())


def test_nothing_to_project_where_nothing_is_trained(make):
    model = get_peft_model(tiny_clip(), make("prograd", next(iter(CONFIGS["prograd"])))).train()
    for parameter in model.parameters():
        parameter.requires_grad = False
    pixels = images().requires_grad_()
    model(pixel_values=pixels, labels=labels()).loss.backward()
    assert pixels.grad.any()

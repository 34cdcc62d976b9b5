"""Class features that are kept are never stale: random edits of all kinds, against the same model with nothing kept."""

import random
import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peft_vprompt.tuners.base.feature_cache import FeatureCache
from peft_vprompt.tuners.base.module_state import column_sums, digest, fixed_weights, state_of
from tests.support.models import CLASS_NAMES, NEW_NAMES, images, tiny_clip, tiny_tokenizer
from tests.support.watching import InputsOf


def tensors(model):
    """What is on the text side: base weights, prompts, projection."""
    text = model.base_model.text_encoder
    return [p for m in (text, model.get_base_model().text_projection) for p in m.parameters() if p.numel()]


def layer(model, rng):
    return rng.choice(list(model.base_model.text_encoder.view.layers))


def a_place(tensor, rng):
    return tuple(rng.randrange(size) for size in tensor.shape)


# ---- edits ------------------------------------------------------------------------------------------------------------


def data_of_a_tensor(model, rng):
    rng.choice(tensors(model)).data.mul_(rng.choice((-1, 0.5, 1.1)))


def data_turned_round(model, rng):
    tensor = rng.choice(tensors(model))
    tensor.data.copy_(tensor.data.flip(0))


def data_of_a_row(model, rng):
    tensor = rng.choice([t for t in tensors(model) if t.ndim > 1])
    tensor.data[rng.randrange(tensor.shape[0])] = torch.randn(tensor.shape[1:])


def data_of_two_rows(model, rng):
    tensor = rng.choice([t for t in tensors(model) if t.ndim > 1])
    rows = [rng.randrange(tensor.shape[0]) for _ in range(2)]
    tensor.data[rows] = tensor.data[rows[::-1]].clone()


def data_of_one_number(model, rng):
    tensor = rng.choice(tensors(model))
    tensor.data[a_place(tensor, rng)] += rng.choice((1e-6, 0.1, 1.0))


def numpy_of_one_number(model, rng):
    tensor = rng.choice(tensors(model))
    tensor.detach().numpy()[a_place(tensor, rng)] = rng.random()


def numpy_of_a_tensor(model, rng):
    array = rng.choice(tensors(model)).detach().numpy()
    array *= 0.9


def new_data(model, rng):
    tensor = rng.choice(tensors(model))
    tensor.data = tensor.data * 1.05


def a_write_that_is_counted(model, rng):
    with torch.no_grad():
        rng.choice(tensors(model)).add_(0.01)


def a_write_under_inference_mode(model, rng):
    with torch.inference_mode():
        rng.choice(tensors(model)).data.add_(0.01)


def a_state_dict_is_written_to(model, rng):
    state = {name: value for name, value in model.state_dict().items() if "text" in name and value.is_floating_point()}
    rng.choice(list(state.values())).numpy()[...] *= 0.97


def weights_are_loaded(model, rng):
    state = {k: v * 0.99 if v.is_floating_point() else v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=rng.random() < 0.5)


def an_attribute(model, rng):
    part = layer(model, rng)
    if rng.random() < 0.5:
        part.self_attn.scale = part.self_attn.scale * rng.choice((0.5, 1.5))
    else:
        part.layer_norm1.eps = rng.choice((1e-5, 1e-2, 1e-1))


def a_hook(model, rng):
    part = layer(model, rng)
    handle = rng.choice((part, part.mlp, part.self_attn.k_proj)).register_forward_hook(halve)
    model.undo.append(handle.remove)


def halve(module, args, output):
    return (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5


def a_pre_hook_on_all_modules(model, rng):
    def shift(module, args):
        return (args[0] + 0.1, *args[1:]) if isinstance(module, nn.Linear) else None

    model.undo.append(nn.modules.module.register_module_forward_pre_hook(shift).remove)


def a_forward(model, rng):
    part = layer(model, rng).mlp
    factor = rng.random()
    part.forward = lambda hidden: type(part).forward(part, hidden) * factor
    model.undo.append(lambda: part.__dict__.pop("forward", None))


def a_forward_of_a_class(model, rng):
    original = nn.LayerNorm.forward
    nn.LayerNorm.forward = nn.Identity.forward
    model.undo.append(lambda: setattr(nn.LayerNorm, "forward", original))


def a_function_of_torch(model, rng):
    original = functional.layer_norm
    functional.layer_norm = lambda hidden, *args: original(hidden, *args) * 0.5
    model.undo.append(lambda: setattr(functional, "layer_norm", original))


def a_function_of_attention(model, rng):
    name = model.get_base_model().config.text_config._attn_implementation
    original = ALL_ATTENTION_FUNCTIONS[name]

    def halved(*args, **kwargs):
        return halve(None, None, original(*args, **kwargs))

    AttentionInterface.register(name, halved)
    model.undo.append(lambda: AttentionInterface.register(name, original))


class Swapped(nn.Module):
    """A part of the user's that depends on what nobody sees."""

    factor = [1.0]

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden) * self.factor[0]


def a_part_of_the_users(model, rng):
    part = layer(model, rng)
    inner = part.mlp
    part.mlp = Swapped(inner)
    Swapped.factor[0] = rng.random()
    model.undo.append(lambda: setattr(part, "mlp", inner))


def feed_forward(model, rng):
    """The MLP of a layer, inside of what the user has put around it."""
    mlp = layer(model, rng).mlp
    while isinstance(mlp, Swapped):
        mlp = mlp.inner
    return mlp


def a_part_of_the_same_kind(model, rng):
    mlp = feed_forward(model, rng)
    linear = nn.Linear(mlp.fc1.in_features, mlp.fc1.out_features).requires_grad_(False)
    mlp.fc1 = linear.to(mlp.fc1.weight.dtype)


class Scaled(nn.Module):
    def forward(self, weight):
        return weight * Swapped.factor[0]


def a_parametrization(model, rng):
    part = feed_forward(model, rng).fc2
    Swapped.factor[0] = rng.random()
    parametrize.register_parametrization(part, "weight", Scaled())
    model.undo.append(
        lambda: parametrize.is_parametrized(part) and parametrize.remove_parametrizations(part, "weight")
    )


def gradients_are_switched(model, rng):
    tensor = rng.choice(tensors(model))
    tensor.requires_grad_(not tensor.requires_grad)


def the_precision(model, rng):
    model.double() if rng.random() < 0.5 else model.float()


def the_classes(model, rng):
    model.set_class_names(rng.choice((CLASS_NAMES, NEW_NAMES)))


def the_template(model, rng):
    model.active_peft_config.template = rng.choice(("a photo of a {}.", "{}", "one {}"))


def the_tokenizer(model, rng):
    model.base_model.tokenizers.given = rng.choice((None, tiny_tokenizer()))


def an_adapter(model, rng):
    model.set_adapter(rng.choice(list(model.peft_config)))


def a_lora_inside(model, rng):
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", rng.choice((0.5, 1.0, 2.0)))


def a_pass_on_the_meta_device(model, rng):
    full = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    model.to("meta")
    with torch.no_grad():
        model.encode_classes()
    model.to_empty(device="cpu")
    model.load_state_dict(full, strict=False)
    for name, value in model.named_buffers():
        value.copy_(buffers[name])


def everything_is_undone(model, rng):
    while model.undo:
        model.undo.pop()()


EDITS = [
    *(data_of_a_tensor, data_turned_round, data_of_a_row, data_of_two_rows, data_of_one_number),
    *(numpy_of_one_number, numpy_of_a_tensor, new_data, a_write_that_is_counted, a_write_under_inference_mode),
    *(a_state_dict_is_written_to, weights_are_loaded, an_attribute, a_hook, a_pre_hook_on_all_modules, a_forward),
    *(a_forward_of_a_class, a_function_of_torch, a_function_of_attention),
    *(a_part_of_the_users, a_part_of_the_same_kind, a_parametrization, gradients_are_switched, the_precision),
    *(the_classes, the_template, the_tokenizer, an_adapter, a_lora_inside, a_pass_on_the_meta_device),
    *[everything_is_undone] * 9,
]


# ---- the property -----------------------------------------------------------------------------------------------------


def features(model):
    classifier = model.class_name_classifier
    with torch.no_grad():
        return [model.encode_classes(), classifier.frozen_text()]


def features_of_nothing_kept(model):
    classifier = model.class_name_classifier
    text = model.base_model.text_encoder
    kept = classifier.texts.features, classifier.texts.frozen, text.kv_caches
    classifier.texts.features, classifier.texts.frozen, text.kv_caches = (FeatureCache() for _ in kept)
    for classes in classifier.memory.class_lists.values():
        classes.sequences = None
    try:
        return features(model)
    finally:
        classifier.texts.features, classifier.texts.frozen, text.kv_caches = kept


def new_model(make, method, case):
    base = tiny_clip()
    if method == "visual_prompt":
        config = LoraConfig(target_modules=r".*text_model.*v_proj", init_lora_weights=False)
        base = inject_adapter_in_model(config, base).requires_grad_(False)
    model = get_peft_model(base, make(method, case)).eval()
    model.add_adapter("other", make(method, case))
    model.undo = []
    return model


METHODS = [
    *(("context_opt", "end"), ("visual_prompt", "deep"), ("read_only_prompt", "rpo")),
    *(("text_encoder", "whole"), ("kgcoop", "words")),
]


def edit_and_compare(make, method, case, count, seed):
    rng = random.Random(seed)
    model = None
    try:
        for step in range(count):
            if step % 25 == 0:
                if model is not None:
                    everything_is_undone(model, rng)
                model = new_model(make, method, case)
            features(model)
            edit = rng.choice(EDITS)
            edit(model, rng)
            for kept, fresh in zip(features(model), features_of_nothing_kept(model), strict=True):
                assert kept.dtype == fresh.dtype and torch.equal(kept, fresh), f"stale after {edit.__name__}, {step}"
    finally:
        everything_is_undone(model, rng)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`", "ignore:.*second time")
@pytest.mark.parametrize(("method", "case"), METHODS)
def test_five_hundred_edits(method, case, make):
    edit_and_compare(make, method, case, 100, seed=1)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`", "ignore:.*second time")
@pytest.mark.parametrize(("method", "case"), METHODS)
def test_ten_thousand_edits(method, case, make):
    edit_and_compare(make, method, case, 2000, seed=2)


# ---- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "case"), METHODS)
def test_nothing_is_computed_twice(method, case, make):
    model = get_peft_model(tiny_clip(), make(method, case)).eval()
    features(model)
    first = model.base_model.text_encoder.view.layers[0]
    for scope in (torch.no_grad, torch.inference_mode, fixed_weights):
        weight = first.mlp.fc1.weight
        with torch.no_grad(), scope(), InputsOf(weight) as feed_forward:
            model.encode_classes()
            model.class_name_classifier.frozen_text()
        assert not feed_forward.seen, scope


def test_fixed_weights_takes_the_word_of_the_caller(make):
    model = get_peft_model(tiny_clip(), make("context_opt", "end")).eval()
    before = features(model)[0]
    weight = model.get_base_model().text_projection.weight
    with fixed_weights():
        weight.data.mul_(-1)
        assert torch.equal(features(model)[0], before)
        with torch.no_grad():
            weight.mul_(1)  # this one is counted
        torch.testing.assert_close(features(model)[0], -before)


def test_digests_tell_tensors_apart():
    tensors = [
        torch.randn(7, 5),
        torch.zeros(3, dtype=torch.bfloat16),
        torch.tensor(2.0),
        torch.zeros(0),
        torch.ones(2) > 0,
    ]
    seen = {digest(tensors)}
    for tensor in tensors:
        for index in range(tensor.numel()):
            other = tensor.clone().flatten()
            other[index] = not other[index] if other.dtype == torch.bool else other[index] + 1
            seen.add(digest([other.view(tensor.shape) if t is tensor else t for t in tensors]))
    assert len(seen) == 1 + sum(tensor.numel() for tensor in tensors)
    assert digest([torch.zeros(2, 3)]) != digest([torch.zeros(3, 2)]) != digest([torch.zeros(3, 2).int()])


def test_column_sums_see_single_numbers_and_moved_rows():
    numbers = torch.randint(-9, 9, (20000,), dtype=torch.int32)
    expected = column_sums(numbers)
    for index in (0, 8191, 19999):
        other = numbers.clone()
        other[index] += 1
        assert not torch.equal(column_sums(other), expected)
    assert not torch.equal(column_sums(numbers.view(100, 200).flip(0).flatten()), expected)


def test_a_state_follows_itself():
    clip = tiny_clip()
    state = state_of([clip.text_model, None], ["fact"]).freeze()
    assert state_of([clip.text_model], ["fact"]).follows(state)
    assert not state_of([clip.text_model], ["other"]).follows(state)


# ---- threads ----------------------------------------------------------------------------------------------------------


def run_together(*functions):
    """Run functions in threads; raise what they raise."""
    errors = []

    def guard(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"
    if errors:
        raise errors[0]


PAIRS = [
    (("maple", "maple"), ("maple", "full-depth")),
    (("context_opt", "end"), ("read_only_prompt", "rpo")),
    (("text_encoder", "whole"), ("visual_prompt", "deep")),
]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_thread_gets_the_answer_of_one_state(pair, make):
    model = get_peft_model(tiny_clip(), make(*pair[0]), adapter_name="a").eval()
    model.add_adapter("b", make(*pair[1]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".a." in name or ".b." in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        answers = []
        for name in ("a", "b"):
            model.set_adapter(name)
            answers.append(model(pixel_values=images(2)).logits)
        with model.disable_adapter():
            answers.append(model(pixel_values=images(2)).logits)
    done = threading.Event()
    seen = []

    def predict():
        with torch.no_grad():
            while not done.is_set():
                seen.append(model(pixel_values=images(2)).logits)

    def switch():
        try:
            for step in range(30):
                model.set_adapter("ab"[step % 2])
                with model.disable_adapter(), torch.no_grad():
                    model(pixel_values=images(2))
                model.class_name_classifier.frozen_text()
        finally:
            done.set()

    run_together(predict, predict, switch)
    assert seen
    for logits in seen:
        assert any(torch.allclose(logits, answer, atol=1e-5) for answer in answers)


def test_frozen_features_in_the_middle_of_two_calls(make):
    """Two threads that both ask for the frozen model inside of a call wait for each other in turn, not for ever."""
    model = get_peft_model(tiny_clip(), make("kgcoop", "words")).train()

    def learn():
        for _ in range(10):
            model(pixel_values=images(2), labels=torch.tensor([0, 1]))
            model.class_name_classifier.memory.frozen.clear()

    run_together(learn, learn, learn)


def test_attention_weights_of_two_threads_do_not_mix(make):
    clip = tiny_clip(attn_implementation="eager")
    tower = get_peft_model(clip, make("maple", "maple")).eval().base_model.vision_encoder
    inputs = [images(1, seed) for seed in range(2)]
    with torch.no_grad():
        expected = [tower(pixels, output_attentions=True).attentions for pixels in inputs]

    def ask(index):
        with torch.no_grad():
            for _ in range(40):
                weights = tower(inputs[index], output_attentions=True).attentions
                assert len(weights) == len(expected[index])
                assert all(map(torch.equal, weights, expected[index]))

    run_together(lambda: ask(0), lambda: ask(1))

"""Layers with hooks, sharded, offloaded or replaced weights run as they are called; all others run in parts."""

import copy
import datetime
import os

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import PeftModel, get_peft_model
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from peft_vprompt import BiasTuningConfig, BottleneckAdapterConfig, FineTuningConfig, VisualPromptConfig
from peft_vprompt.backbones.supported import view
from peft_vprompt.core.offloading import bring
from peft_vprompt.core.plain_modules import all_plain, in_place_of
from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.tuners.bottleneck_adapter.method import Bottleneck
from tests.support.backbones import FLAT_MODELS, inputs, tiny
from tests.support.models import (
    BACKBONES,
    CONFIGS,
    disturb,
    images,
    labels,
    logits,
    often,
    tiny_clip,
    tiny_vit,
    towers,
)
from tests.support.training_cases import FIRST_CASES, OWN_FEATURES, first_cases, gradients
from tests.support.watching import InputsOf


CLOSE = {"rtol": 0, "atol": 1e-5}
#: A text side that learns, one that reads keys and values of whole layers, and one with vectors of its own.
MIXED = [
    case
    for case in FIRST_CASES
    if case.backbone == "CLIPModel" and case.method in ("maple", "read_only_prompt", "class_head")
]


def answers(model):
    """Logits and gradients of a step."""
    model.zero_grad()
    output = model(pixel_values=images(), labels=labels() % 3)
    output.loss.backward()
    return output.logits.detach(), gradients(model)


# ---- hooks ------------------------------------------------------------------------------------------------------------


@first_cases
def test_hooks_on_every_module_of_a_layer_fire_and_change_nothing(case, tokenizer_path):
    model = disturb(case.build(tokenizer_path))
    expected = answers(model)
    fired = set()
    modules = {module for tower in towers(model)[:1] for layer in tower.view.layers for module in layer.modules()}
    # Not called: what holds an adapter's parts, and a module that a trained copy stands for.
    modules -= {module.original_module for module in modules if isinstance(module, AuxiliaryTrainingWrapper)}
    modules = {module for module in modules if not isinstance(module, (nn.ModuleDict, nn.ParameterDict))}
    for module in modules:
        module.register_forward_hook(lambda module, args, output: fired.add(module))
    torch.testing.assert_close(answers(model), expected, **CLOSE)
    assert fired == modules


@pytest.mark.parametrize(
    "case", [c for c in FIRST_CASES if c.backbone == "CLIPModel" and c.method not in OWN_FEATURES], ids=str
)
def test_hooks_on_text_layers_fire_in_every_call(case, tokenizer_path):
    model = disturb(case.build(tokenizer_path))
    calls = []
    for layer in towers(model)[1].view.layers:
        layer.register_full_backward_pre_hook(lambda module, gradient: None)
        layer.register_forward_hook(lambda module, args, output: calls.append(module))
    expected = logits(copy.deepcopy(model))
    calls.clear()
    for _ in range(2):
        torch.testing.assert_close(logits(model), expected, **CLOSE)
    assert len(calls) >= 6


@pytest.mark.parametrize("name", [name for name in FLAT_MODELS if not name.startswith("DINOv3ConvNext")])
def test_gradients_of_the_last_layer_are_those_of_all_its_rows(name):
    """As Grad-CAM takes them."""
    model = get_peft_model(tiny(name), VisualPromptConfig(num_virtual_tokens=2, deep=True)).eval()
    layer = list(model.base_model.vision_encoder.view.layers)[-1]
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output))
    output = model(**inputs(name, 2))
    first = next(iter(output.values()))
    first.sum().backward()
    hidden = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert len(seen) == 1 and hidden.shape[1] > 16


def test_hooks_on_the_towers_fire(make):
    model = disturb(get_peft_model(tiny_clip(), make("maple", "maple")))
    expected = logits(model)
    fired = []
    tower = model.base_model.vision_encoder
    for module in (tower, tower.base_layer):
        module.register_forward_hook(lambda module, args, output: fired.append(output.pooler_output.shape))
    torch.testing.assert_close(logits(model), expected, **CLOSE)
    assert len(fired) == 2


def test_blocks_and_stages_of_swin_are_called_with_their_hooks():
    model = disturb(get_peft_model(tiny("SwinModel"), VisualPromptConfig(num_virtual_tokens=2, deep=True)))
    fired = []
    stages = model.base_model.vision_encoder.view.module.encoder.layers
    for module in [*model.base_model.vision_encoder.view.layers, *stages]:
        module.register_forward_hook(lambda module, args, output: fired.append(output.shape[1]))
    model(pixel_values=images())
    assert fired == [18, 6, 6, 6]


def test_a_hook_may_change_what_a_module_gives():
    linear = nn.Linear(2, 2)
    handle = linear.register_forward_hook(lambda module, args, output: output + module.weight.sum() * 0 + 1)
    assert in_place_of(linear, lambda x: x * 2, torch.ones(2)).tolist() == [3.0, 3.0]
    handle.remove()
    assert in_place_of(linear, lambda x: x * 2, torch.ones(2)).tolist() == [2.0, 2.0]
    assert "forward" not in vars(linear)


# ---- what is plain ----------------------------------------------------------------------------------------------------


class Mine(nn.Linear):
    """A linear layer of the user's."""


def with_a_hook(layer):
    layer.mlp.fc1.register_forward_pre_hook(lambda module, args: None)


def with_a_backward_hook(layer):
    layer.mlp.register_full_backward_hook(lambda *args: None)


def with_a_forward(layer):
    layer.self_attn.forward = layer.self_attn.forward


def with_a_part_of_another_class(layer):
    layer.mlp.fc2.__class__ = Mine


def with_a_parametrization(layer):
    nn.utils.parametrizations.weight_norm(layer.mlp.fc2)


@pytest.mark.parametrize(
    "change", [with_a_hook, with_a_backward_hook, with_a_forward, with_a_part_of_another_class, with_a_parametrization]
)
def test_a_changed_layer_runs_whole(change):
    clip = tiny_clip()
    tower = view(clip.vision_model)
    layer = tower.layers[-1]
    assert all_plain(layer) and tower.runs_in_parts(layer)
    change(layer)
    assert not tower.runs_in_parts(layer)


def test_a_hook_for_all_modules_is_seen():
    clip = tiny_clip()
    tower = view(clip.vision_model)
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert not tower.runs_in_parts(tower.layers[-1])
    handle.remove()
    assert tower.runs_in_parts(tower.layers[-1])


def test_a_class_that_was_patched_is_seen(monkeypatch):
    clip = tiny_clip()
    tower = view(clip.vision_model)
    monkeypatch.setattr(type(tower.layers[0]), "forward", lambda self, hidden, *args, **kwargs: hidden)
    assert not tower.runs_in_parts(tower.layers[-1])


def test_an_adapter_around_a_layer_is_not_left_out():
    """Parts of a wrapped layer can be reached through the wrapper, which must not be passed by."""
    model = tiny_vit()
    tower = view(model.vit)
    layer = tower.layers[-1]
    wrapped = nn.Sequential()
    wrapped.attention = layer.attention
    assert tower.runs_in_parts(layer) and not tower.runs_in_parts(wrapped)


def test_a_plain_layer_computes_the_rows_that_are_read_alone(make):
    model = disturb(get_peft_model(tiny_clip(), make("maple", "maple")))
    layer = model.base_model.vision_encoder.view.layers[-1]
    with InputsOf(layer.mlp.fc1.weight) as feed_forward:
        logits(model)
    assert [hidden.shape[1] for hidden in feed_forward.seen] == [1]


# ---- sharded weights --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh():
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def shard(model, mesh, whole_towers, **options):
    """Shard a model layer by layer, as FSDP's wrapping policies do, or tower by tower."""
    for tower in towers(model):
        for module in [tower.base_layer] if whole_towers else tower.view.layers:
            fully_shard(module, mesh=mesh, **options)
    scalars = {p for p in model.parameters() if p.ndim == 0}
    return fully_shard(model, mesh=mesh, ignored_params=scalars, **options)


@pytest.mark.parametrize("whole_towers", [False, True], ids=["layers", "towers"])
@first_cases
def test_a_sharded_model_gives_the_same_logits_and_gradients(case, whole_towers, tokenizer_path, mesh):
    model = case.build(tokenizer_path)
    expected_logits, expected = answers(model)
    sharded = shard(case.build(tokenizer_path), mesh, whole_towers)
    found_logits, found = answers(sharded)
    torch.testing.assert_close(found_logits, expected_logits, **CLOSE)
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient, expected[name], **CLOSE
        )


@pytest.mark.parametrize("case", often(FIRST_CASES, MIXED), ids=str)
def test_a_sharded_model_in_mixed_precision(case, tokenizer_path, mesh):
    """Weights in bfloat16, but for the scale, which is in no shard, and what FSDP does not see."""
    expected = answers(disturb(case.build(tokenizer_path)))[0]
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    found, grads = answers(shard(disturb(case.build(tokenizer_path)), mesh, False, mp_policy=policy))
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    assert all(gradient.dtype == torch.float32 for gradient in grads.values())


@pytest.mark.parametrize("sharded", ["blocks", "stages"])
def test_sharded_parts_of_swin_are_known(sharded, mesh):
    """FSDP makes a class of its own of each."""

    def build():
        return disturb(get_peft_model(tiny("SwinModel"), VisualPromptConfig(num_virtual_tokens=2, deep=True)))

    expected = build()(images()).last_hidden_state
    model = build()
    tower = model.base_model.vision_encoder.view
    for module in tower.layers if sharded == "blocks" else tower.module.encoder.layers:
        fully_shard(module, mesh=mesh)
    torch.testing.assert_close(model(images()).last_hidden_state, expected, **CLOSE)


def test_a_sharded_attention_attends_as_its_user_chose(make, mesh):
    def build():
        return disturb(get_peft_model(tiny_clip(attn_implementation="eager"), make("read_only_prompt", "rpo")))

    model = build()
    for layer in towers(model)[0].view.layers:
        fully_shard(layer.self_attn, mesh=mesh)
    torch.testing.assert_close(logits(model), logits(build()), **CLOSE)


@pytest.mark.parametrize("apart", ["sharded", "offloaded"])
def test_a_trained_bias_is_not_lost_where_weights_come_with_a_call(apart, mesh):
    def build(base):
        return disturb(get_peft_model(base, BiasTuningConfig()))

    expected = answers(build(tiny_vit()))
    model = build(tiny_vit() if apart == "sharded" else in_memory(tiny_vit(), None))
    if apart == "sharded":
        for module in [m for name, m in model.named_modules() if name.endswith("_proj.base_layer")]:
            fully_shard(module, mesh=mesh)
    torch.testing.assert_close(answers(model), expected, **CLOSE)


def two_processes(rank, path, tokenizer_path):
    """Compare each method, sharded over two processes that see the same images, with the model in one."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for case in FIRST_CASES:
        for whole_towers in (False, True):
            expected_logits, expected = answers(case.build(tokenizer_path))
            found_logits, found = answers(shard(case.build(tokenizer_path), mesh, whole_towers))
            torch.testing.assert_close(found_logits, expected_logits, **CLOSE)
            for name, gradient in found.items():
                whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
                torch.testing.assert_close(whole, expected[name], **CLOSE, msg=f"{case} {name}")
    distributed.destroy_process_group()


@pytest.mark.nightly
def test_a_model_sharded_over_two_processes(tokenizer_path, tmp_path):
    torch.multiprocessing.spawn(two_processes, (str(tmp_path / "store"), tokenizer_path), nprocs=2)


def test_a_sharded_model_is_saved(make, mesh, tmp_path):
    model = disturb(get_peft_model(tiny_clip(), make("maple", "maple")))
    expected = logits(model)
    model = shard(model, mesh, False)
    with pytest.raises(ValueError, match="shards of .*StateDictOptions.*state_dict=state"):
        model.save_pretrained(tmp_path)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path)).eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=0)


def a_process_that_saves(rank, path, tokenizer_path):
    """Save in one process alone, which has nobody to ask for shards."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    distributed.init_process_group(
        "gloo", init_method=f"file://{path}/store", rank=rank, world_size=2, timeout=timeout
    )
    case = next(case for case in FIRST_CASES if case.method == "maple")
    model = shard(case.build(tokenizer_path), init_device_mesh("cpu", (2,)), False)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if rank == 0:
        model.save_pretrained(path, state_dict=state)
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.nightly
def test_the_first_process_saves_what_was_gathered(tokenizer_path, tmp_path):
    torch.multiprocessing.spawn(a_process_that_saves, (str(tmp_path), tokenizer_path), nprocs=2)
    case = next(case for case in FIRST_CASES if case.method == "maple")
    loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path)).eval()
    torch.testing.assert_close(logits(loaded), logits(case.build(tokenizer_path).eval()), rtol=0, atol=0)


# ---- offloaded weights ------------------------------------------------------------------------------------------------


def on_disk(model, folder):
    return disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def in_memory(model, folder):
    return cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("offload", [on_disk, in_memory])
@first_cases
def test_an_offloaded_base_model_gives_the_same(case, offload, tokenizer_path, tmp_path):
    expected = case.build(tokenizer_path).eval()
    plain = BACKBONES[case.backbone]()
    torch.manual_seed(1)
    if case.method == "clip_lora":
        with pytest.raises(UnsupportedModelError, match="whose weights are offloaded.*Load the model whole"):
            get_peft_model(offload(plain, tmp_path), case.config(tokenizer_path))
        return
    model = get_peft_model(offload(plain, tmp_path), case.config(tokenizer_path)).eval()
    torch.testing.assert_close(logits(model), logits(expected), **CLOSE)


def test_a_copy_that_is_brought_has_no_more_than_the_original():
    linear = in_memory(nn.Linear(2, 2, bias=False), None)
    copied = bring(copy.deepcopy(linear))
    assert copied.bias is None and copied.weight.requires_grad and not copied.weight.is_meta
    with torch.no_grad():
        copied.weight += 1
        torch.testing.assert_close(copied(torch.ones(1, 2)), linear(torch.ones(1, 2)) + 2)


def test_bottlenecks_beside_an_offloaded_model(tmp_path):
    expected = logits(get_peft_model(tiny_vit(), BottleneckAdapterConfig()).eval())
    model = get_peft_model(on_disk(tiny_vit(), tmp_path), BottleneckAdapterConfig()).eval()
    assert torch.equal(logits(model), expected)


TRAINS_COPIES = {
    "norms": (tiny_clip, lambda make: make("norm_tuning", "both")),
    "text": (tiny_clip, lambda make: make("text_encoder", "whole")),
    "prompts-and-head": (tiny_vit, lambda make: VisualPromptConfig(num_virtual_tokens=2)),
    "bottlenecks-and-head": (tiny_vit, lambda make: BottleneckAdapterConfig()),
    "last-layer": (tiny_vit, lambda make: FineTuningConfig(num_layers=1)),
}


@pytest.mark.parametrize("case", TRAINS_COPIES)
@pytest.mark.parametrize("offload", often([on_disk, in_memory], [in_memory]))
def test_copies_of_offloaded_modules_learn(case, offload, make, tmp_path):
    build, config = TRAINS_COPIES[case]

    def trained(base):
        torch.manual_seed(1)
        model = disturb(get_peft_model(base, config(make)))
        first = answers(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter -= 0.1 * parameter.grad
        with model.disable_adapter():
            plain = logits(model)
        return first, logits(model), plain

    torch.testing.assert_close(trained(offload(build(), tmp_path)), trained(build()), **CLOSE)


@pytest.mark.parametrize("case", ["text", "last-layer"])
def test_copies_of_quantised_modules_are_refused(case, make):
    build, config = TRAINS_COPIES[case]
    base = build()
    layer = base.text_model if case == "text" else base.vit
    linear = next(module for module in reversed(list(layer.modules())) if isinstance(module, nn.Linear))
    linear.weight = nn.Parameter(torch.ones(linear.weight.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="of a quantised model. Load the model without"):
        get_peft_model(base, config(make))


def test_bottlenecks_beside_integers_are_floats():
    linear = nn.Linear(16, 16)
    linear.weight = nn.Parameter(torch.ones(16, 16, dtype=torch.int8), requires_grad=False)
    assert Bottleneck(linear, 4, "identity").down.weight.dtype == torch.float32


# ---- tracing ----------------------------------------------------------------------------------------------------------


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values).logits


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of sizes, in transformers' layers as in ours
@pytest.mark.parametrize("case", ["deep", "border", "channels"])
@pytest.mark.parametrize("build", [tiny_vit, tiny_clip])
def test_jit_trace_of_vpt(build, case, make):
    config = make("visual_prompt", case) if build is tiny_clip else CONFIGS["visual_prompt"][case]()
    model = disturb(get_peft_model(build(), config))
    traced = torch.jit.trace(Logits(model), (images(2),), check_trace=False)
    with torch.no_grad():
        torch.testing.assert_close(traced(images(3)), model(pixel_values=images(3)).logits, **CLOSE)

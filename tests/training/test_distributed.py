"""Two processes (DDP over gloo) against one process on the joint batch, for every configuration of every method.

All cases share one pair of processes: starting them takes longer than the work. They compute in float64, so that a
wrong gradient cannot hide behind rounding.
"""

import gc
import os
import socket
from contextlib import contextmanager

import pytest
import torch
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from tests.support.models import CLASS_NAMES, often
from tests.support.training_cases import (
    CASES,
    FIRST_CASES,
    PASS_BY_PASS,
    TRAINED_CASES,
    Case,
    dataset,
    every_case,
    first_cases,
    gradients,
    make_trainer,
    trained,
)


STEPS, PER_PROCESS, PROCESSES = 3, 2, 2
IMAGES = STEPS * PER_PROCESS * PROCESSES
#: Methods that learn text prompts which do not depend on the image.
SHARDED_CASES = [case for case in FIRST_CASES if case.method in ("context_opt", "maple", "read_only_prompt", "mrpo")]
CLOSE = {"rtol": 0, "atol": 1e-6}


def train(model, batches, wrap=lambda model: model) -> dict:
    """A few steps of SGD; the gradients of each and the parameters after the last."""
    wrapped = wrap(model.train())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    steps = []
    for batch in batches:
        optimizer.zero_grad()
        wrapped(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss.backward()
        steps.append(gradients(model))
        optimizer.step()
    return {"gradients": steps, "parameters": trained(model)}


def joint_batches() -> list[dict]:
    size = PER_PROCESS * PROCESSES
    data = dataset(IMAGES)
    return [data[start : start + size] for start in range(0, IMAGES, size)]


def train_with_trainer(case: Case, tokenizer_path: str, output, per_process: int) -> dict:
    """The stock Trainer, with evaluation and the best checkpoint; its parameters and evaluation losses."""
    model = case.build(tokenizer_path, dtype=torch.float64)
    trainer = make_trainer(
        model,
        output,
        dataset(IMAGES),
        dataset(8, seed=1),
        per_device_train_batch_size=per_process,
        per_device_eval_batch_size=per_process,
        max_steps=STEPS,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,  # step 2 of 3: the only one that was evaluated
        ddp_backend="gloo" if torch.distributed.is_initialized() else None,
        max_grad_norm=0.0,
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return {"parameters": trained(model), "eval_losses": losses}


@contextmanager
def counted_classes(model):
    """How many classes each pass through the text tower encodes."""
    tower, counts = model.base_model.text_encoder, []
    original = tower.encode_class_prompts
    tower.encode_class_prompts = lambda packed, **kwargs: (
        counts.append(packed.num_classes) or original(packed, **kwargs)
    )
    yield counts
    del tower.encode_class_prompts


def process(rank: int, port: int, tokenizer_path: str, output: str, cases: list[Case]) -> None:
    """What each of the two processes does; the first writes its results down."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    gc.freeze()  # as in `quick`
    torch.distributed.init_process_group("gloo")
    mine = slice(rank * PER_PROCESS, (rank + 1) * PER_PROCESS)
    batches = [{name: column[mine] for name, column in batch.items()} for batch in joint_batches()]
    results = {}
    for case in cases:
        results[str(case)] = train(case.build(tokenizer_path, dtype=torch.float64), batches, DistributedDataParallel)
    for case in [case for case in cases if case in FIRST_CASES]:
        model = case.build(tokenizer_path, dtype=torch.float64)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if case in SHARDED_CASES:
            sharded = case.build(tokenizer_path, dtype=torch.float64, shard_classes=True)
            with counted_classes(sharded) as encoded:
                results[f"sharded {case}"] = train(sharded, batches, DistributedDataParallel)
            results[f"share {case}"] = sorted(set(encoded))
        results[f"checkpointing {case}"] = train(model, batches, DistributedDataParallel)
        results[f"Trainer {case}"] = train_with_trainer(case, tokenizer_path, f"{output}/{case}", PER_PROCESS)
    if rank == 0:
        torch.save(results, f"{output}/results.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tokenizer_path, tmp_path_factory, request) -> dict:
    """What two processes got, by case: those that this run tests."""
    tested = [item.callspec.params["case"] for item in request.session.items if item.module is request.module]
    cases = [case for case in CASES if case in tested]
    output = tmp_path_factory.mktemp("distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(process, (port, tokenizer_path, str(output), cases), nprocs=PROCESSES)
    return torch.load(output / "results.pt", weights_only=True)


@every_case
def test_two_processes_are_one_with_the_joint_batch(case, tokenizer_path, two_processes):
    if case.method in PASS_BY_PASS:
        pytest.skip(PASS_BY_PASS[case.method])
    expected = train(case.build(tokenizer_path, dtype=torch.float64), joint_batches())
    torch.testing.assert_close(two_processes[str(case)], expected, **CLOSE)


@pytest.mark.parametrize("case", often(SHARDED_CASES, TRAINED_CASES), ids=str)
def test_classes_shared_out_over_processes(case, tokenizer_path, two_processes):
    expected = train(case.build(tokenizer_path, dtype=torch.float64), joint_batches())
    torch.testing.assert_close(two_processes[f"sharded {case}"], expected, **CLOSE)
    assert two_processes[f"share {case}"] == [len(CLASS_NAMES) // PROCESSES]


@first_cases
def test_two_processes_with_gradient_checkpointing(case, tokenizer_path, two_processes):
    if case.method in PASS_BY_PASS:
        pytest.skip(PASS_BY_PASS[case.method])
    expected = train(case.build(tokenizer_path, dtype=torch.float64), joint_batches())
    torch.testing.assert_close(two_processes[f"checkpointing {case}"], expected, **CLOSE)


@first_cases
def test_trainer_on_two_processes_is_the_trainer_on_one(case, tokenizer_path, two_processes, tmp_path):
    if case.method in PASS_BY_PASS:
        pytest.skip(PASS_BY_PASS[case.method])
    expected = train_with_trainer(case, tokenizer_path, tmp_path, PER_PROCESS * PROCESSES)
    torch.testing.assert_close(two_processes[f"Trainer {case}"], expected, **CLOSE)

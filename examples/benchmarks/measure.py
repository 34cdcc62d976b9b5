"""Time, memory, rows and agreement of the sides of one cell, each measured in a process made for it."""

from __future__ import annotations

import ctypes
import resource
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .alternatives import ALTERNATIVES
from .cases import Case
from .floor import flops
from .inputs import Inputs
from .sides import Sides, build


#: Largest difference of logits and gradients, relative to the largest value. In lower precision it is only recorded.
TOLERANCE = 1e-4
MAX_REPEATS = 31

#: How much larger than what is in use a heap that keeps freed memory may grow.
HEAP_SLACK = 1.3

#: How much of the memory that is free a process may take.
SHARE = 0.8

#: Metric -> which side's time is divided by which.
RATIOS = {
    "ratio": ("plain", "ours"),
    "bare_ratio": ("ours", "bare"),
    "floor_ratio": ("ours", "floor"),
    "one_ratio": ("ours", "one"),
    "compiled_ratio": ("ours", "compiled"),
    "bf16_ratio": ("ours", "bf16"),
    "bf16_floor_ratio": ("bf16", "bf16_floor"),
    "fixed_ratio": ("fixed", "bare"),
    "transformers_ratio": ("transformers", "ours"),
    "open_clip_ratio": ("open_clip", "ours"),
}

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, for all sides alike: giving it back costs up to half of a CPU training step.

    The same as MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_=(no limit) and MALLOC_TOP_PAD_=536870912.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        top_pad, trim_threshold, mmap_max = -2, -1, -4
        for option, value in ((mmap_max, 0), (trim_threshold, -1), (top_pad, 2**29)):
            libc.mallopt(option, value)


def prepare(inputs: Inputs, max_bytes: int) -> None:
    """Set threads, and refuse memory far beyond the limit or that others need: what is too large fails alone."""
    torch.set_num_threads(inputs.threads)
    if inputs.device == "cpu":
        available = read_memory("/proc/meminfo", "MemAvailable")
        limit = int(min(max_bytes * HEAP_SLACK, available * SHARE))
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def synchronize(inputs: Inputs) -> None:
    """Wait for the device."""
    if inputs.device != "cpu":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Limits:
    """What a side may cost before it is left out, and how long repeats may go on.

    Attributes:
        seconds: longest run of a side.
        bytes: most memory of a process.
        budget: seconds that all repeats of a cell may take together.
        repeats: fewest repeats, whatever they take.
    """

    seconds: float = 60
    bytes: int = 12 * 10**9
    budget: float = 20
    repeats: int = 3


def measure_times(case: Case, inputs: Inputs, limits: Limits, rates: dict) -> dict:
    """Milliseconds of each side, interleaved; agreement of ours and plain; rows. Sides too large are estimated."""
    sides = build(case, inputs)
    results = {
        name: too_large(sides, name, limits, rates) for name in ("ours", "floor", *case.sides) if name in sides.run
    }
    results |= {name: {"skipped": why} for name, why in sides.missing.items()}
    names = [name for name, result in results.items() if "skipped" not in result]
    outputs = warm_up(sides, names, results, inputs)
    duration = sum(results[name].pop("first_seconds") for name in names)
    repeats = max(limits.repeats, min(MAX_REPEATS, int(limits.budget / max(duration, 1e-3))))
    samples = interleaved(sides, names, repeats, inputs)
    for name in names:
        results[name] |= {
            "ms": statistics.median(samples[name]),
            "samples_ms": [round(value, 3) for value in samples[name]],
        }
    cell = {"sides": results, "repeats": repeats}
    if {"ours", "plain"} <= outputs.keys():
        cell["agreement"] = agreement(outputs["ours"], outputs["plain"])
    if {"ours", "bf16"} <= outputs.keys() and outputs["ours"][1]:
        cell["gradient_cosine"] = cosine(outputs["ours"][1], outputs["bf16"][1])
    for name in names:
        if name in sides.weights:
            results[name]["weight_bytes"] = sides.weights[name]
    for name in ALTERNATIVES.keys() & outputs.keys():
        found = agreement(outputs["ours"], outputs[name])
        cell.setdefault("agreement", {}).update({f"{name}: {key}": error for key, error in found.items()})
    for metric, (upper, lower) in RATIOS.items():
        if upper in names and lower in names:
            cell[metric] = paired(samples[upper], samples[lower])
    if {"ours", "plain"} <= sides.products.keys() and sides.products["ours"]:
        cell["products_ratio"] = flops(sides.products["plain"]) / flops(sides.products["ours"])
    if "one_ratio" in cell:
        cell["one_by_one_ratio"] = case.adapters / cell["one_ratio"]  # switching between adapters not counted
    return cell


def too_large(sides: Sides, name: str, limits: Limits, rates: dict) -> dict:
    """Nothing for a side that can be run; otherwise an estimate and the reason. Ours bounds its own memory."""
    if name not in sides.rows or not rates:
        return {}
    guess = estimate(sides.rows[name], rates)
    if name == "plain" and guess["estimated_bytes"] > limits.bytes:
        return guess | {"skipped": f"needs more than {limits.bytes / 1e9:.0f} GB"}
    if guess["estimated_ms"] > limits.seconds * 1e3:
        return guess | {"skipped": f"takes more than {limits.seconds:.0f} s"}
    return {}


def warm_up(sides: Sides, names: list[str], results: dict, inputs: Inputs) -> dict:
    """Run every side once: its outputs are returned, its rows and duration go to `results`."""
    outputs, clock = {}, CLOCKS[inputs.clock]
    for name in {"ours", "compiled"}.intersection(
        names
    ):  # what is done once for a whole training is not part of a step
        start = clock()
        run_once(sides, name)
        results[name]["warm_up_seconds"] = clock() - start
    for name in names:
        start = clock()
        with counted_rows(sides.layers.get(name, {})) as counted:
            outputs[name] = run_once(sides, name)
        synchronize(inputs)
        results[name] |= {"first_seconds": clock() - start} | ({"rows": counted.rows} if counted.rows else {})
    return outputs


def interleaved(sides: Sides, names: list[str], repeats: int, inputs: Inputs) -> dict[str, list[float]]:
    """Milliseconds of `repeats` runs of every side, one after the other and in turn first."""
    clock, samples = CLOCKS[inputs.clock], {name: [] for name in names}
    for repeat in range(repeats):
        for name in names if repeat % 2 else reversed(names):
            clear_gradients(sides)
            synchronize(inputs)
            start = clock()
            sides.run[name]()
            synchronize(inputs)
            samples[name].append((clock() - start) * 1e3)
    return samples


def paired(upper: list[float], lower: list[float]) -> float:
    """Median of the ratios within each repeat, which slow phases of the machine do not move."""
    return statistics.median(a / b for a, b in zip(upper, lower, strict=True))


def clear_gradients(sides: Sides) -> None:
    """Gradients are made anew in every run."""
    for trained in (sides.trained, *sides.own.values()):
        for tensor in trained.values():
            tensor.grad = None


def run_once(sides: Sides, name: str) -> tuple[Tensor | None, dict[str, Tensor]]:
    """What a side returns, and the gradients it left."""
    clear_gradients(sides)
    output = sides.run[name]()
    trained = sides.own.get(name, sides.trained)
    return output, {key: tensor.grad for key, tensor in trained.items() if tensor.grad is not None}


def agreement(ours, plain) -> dict[str, float]:
    """Largest difference, relative to the largest value, of the outputs and of each gradient."""
    (output, gradients), (plain_output, plain_gradients) = ours, plain
    if gradients.keys() != plain_gradients.keys():
        raise RuntimeError(f"Gradients of {sorted(gradients)} cannot be compared with {sorted(plain_gradients)}.")
    errors = {"output": relative_error(output, plain_output)}
    return errors | {name: relative_error(gradients[name], plain_gradients[name]) for name in gradients}


def cosine(ours: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Cosine between all gradients of one side and those of another."""
    one, two = (torch.cat([side[name].double().flatten() for name in ours]) for side in (ours, other))
    return float(F.cosine_similarity(one, two, dim=0))


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest difference over largest value."""
    return float((value.float() - expected.float()).abs().max() / expected.float().abs().max())


class counted_rows(TorchFunctionMode):  # noqa: N801 - a context, like those of contextlib
    """Count the rows that pass the feed-forward maps of each tower while the block runs, averaged over its layers.

    Calls are watched and no hook is put on a layer: layers with hooks are not run in parts, so that others would be counted.

    Args:
        layers: tower -> its layers.
    """

    def __init__(self, layers: dict[str, nn.ModuleList]):
        super().__init__()
        self.counts = dict.fromkeys(layers, 0.0)
        self.shares = {
            id(first_map(layer).weight): (tower, 1 / len(modules))
            for tower, modules in layers.items()
            for layer in modules
        }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call the function; count where it is a linear map of those."""
        if function is F.linear and (found := self.shares.get(id(args[1]))) is not None:
            tower, share = found
            self.counts[tower] += args[0].numel() / args[0].shape[-1] * share
        return function(*args, **(kwargs or {}))

    @property
    def rows(self) -> dict[str, float]:
        """What was counted, of the towers that computed something."""
        return {tower: round(count, 1) for tower, count in self.counts.items() if count}


def first_map(layer: nn.Module) -> nn.Linear:
    """Return the first linear map of a layer's feed-forward part."""
    return next(module for module in layer.mlp.modules() if isinstance(module, nn.Linear))


# ---- memory ---------------------------------------------------------------------------------------------------------


def measure_memory(case: Case, inputs: Inputs, side: str) -> dict[str, int]:
    """Peak memory of one run of one side: `peak_bytes` above the loaded model, `process_bytes` with everything.

    `ms` is the time of this first run, for cells that are run once.
    """
    sides = build(case, inputs)
    if inputs.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(sides, side)
        peak = torch.cuda.max_memory_allocated()
        return {"peak_bytes": peak - before, "process_bytes": peak}
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # start the high-water mark anew
    before, start = read_memory("/proc/self/status", "VmRSS"), CLOCKS[inputs.clock]()
    run_once(sides, side)
    peak = read_memory("/proc/self/status", "VmHWM")
    return {"peak_bytes": peak - before, "process_bytes": peak, "ms": (CLOCKS[inputs.clock]() - start) * 1e3}


def read_memory(path: str, name: str) -> int:
    """A field of a file of the kernel that counts in kilobytes, in bytes."""
    lines = Path(path).read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


# ---- estimates ------------------------------------------------------------------------------------------------------


def measure_rates(inputs: Inputs) -> dict[str, dict[str, float]]:
    """Milliseconds and bytes that one row costs in each tower, with gradients and without: what estimates are made of."""
    clip = inputs.clip().requires_grad_(False)
    rates = {}
    for tower, batch in (("text", 8), ("vision", 2)):
        module = getattr(clip, f"{tower}_model")
        rows = batch * (77 if tower == "text" else module.embeddings.num_positions)
        for learns in (True, False):
            hidden = torch.randn(batch, rows // batch, module.config.hidden_size).to(clip.device, clip.dtype)
            hidden.requires_grad_(learns)

            def run(hidden=hidden, layers=module.encoder.layers, learns=learns):
                with saved_bytes(clip) as counter, torch.set_grad_enabled(learns):
                    output = hidden
                    for layer in layers:
                        output = layer(output, None)
                    if learns:
                        output.sum().backward()
                synchronize(inputs)
                return counter["bytes"]

            run()
            start = CLOCKS[inputs.clock]()
            held = run()
            seconds = CLOCKS[inputs.clock]() - start
            rates[f"{tower}{'' if learns else '_frozen'}"] = {"ms": seconds * 1e3 / rows, "bytes": held / rows}
    return rates


@contextmanager
def saved_bytes(model: nn.Module):
    """Bytes that autograd keeps for the backward pass while the block runs, the model's own weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen, counter = {}, {"bytes": 0}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            counter["bytes"] = sum(seen.values())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counter


def estimate(rows: tuple[int, int, bool], rates: dict) -> dict[str, float]:
    """About how long, and with how much memory, `rows` of text and images are computed and learned from."""
    text, vision, learns = rows
    parts = ((text, rates["text"]), (vision, rates["vision" if learns else "vision_frozen"]))
    return {
        "estimated_ms": sum(count * rate["ms"] for count, rate in parts),
        "estimated_bytes": round(sum(count * rate["bytes"] for count, rate in parts)),
    }

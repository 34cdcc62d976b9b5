"""Damage to the folder of a saved adapter: what accidents and attackers do to it, by name. Each takes a random generator."""

import json
import os
import struct
from pathlib import Path

import numpy as np


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def _config(folder: Path, change) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def _header(folder: Path, change) -> None:
    """Rewrite the header of the weights, the tensors' bytes left as they are."""
    content = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


def _one_tensor(header: dict, random: np.random.Generator) -> dict:
    names = sorted(name for name in header if name != "__metadata__")
    return header[names[random.integers(len(names))]]


def any_json(random: np.random.Generator):
    """Return a value of any type that JSON has."""
    values = [
        None,
        True,
        False,
        0,
        -1,
        10**9,
        10**400,
        0.5,
        float("nan"),
        float("inf"),
        "",
        "no",
        "../..",
        "x" * 10**5,
    ]
    values += [[], [None], ["a", 1], [[[]]], {}, {"a": {}}, [0] * 10**4]
    return values[random.integers(len(values))]


def wrong_types(folder, random):
    def change(config):
        names = sorted(config)
        for name in random.choice(names, random.integers(1, 3), replace=False):
            config[str(name)] = any_json(random)
        return config

    _config(folder, change)


def missing_fields(folder, random):
    _config(folder, lambda config: {name: value for name, value in config.items() if random.random() < 0.7})


def unknown_fields(folder, random):
    _config(
        folder, lambda config: config | {"__class__": any_json(random), "eval": "print(1)", "self": any_json(random)}
    )


def no_object(folder, random):
    (folder / CONFIG).write_text(json.dumps(any_json(random)))


def config_is_cut(folder, random):
    content = (folder / CONFIG).read_bytes()
    (folder / CONFIG).write_bytes(content[: random.integers(len(content))])


def config_has_changed_bytes(folder, random):
    content = bytearray((folder / CONFIG).read_bytes())
    for _ in range(random.integers(1, 4)):
        content[random.integers(len(content))] = random.integers(256)
    (folder / CONFIG).write_bytes(content)


def lists_in_lists(folder, random):
    depth = int(random.integers(10**3, 10**5))
    (folder / CONFIG).write_text('{"peft_type": ' + depth * "[" + depth * "]" + "}")


def a_large_config(folder, random):
    _config(folder, lambda config: config | {"class_names": ["a" * 10] * 10**5 * int(random.integers(3, 5))})


def another_method(folder, random):
    types = ["LORA", "COCOOP", "MAPLE", "VISUAL_PROMPT", "MLP_HEAD", "NONE", "prefix_tuning", ""]
    _config(folder, lambda config: config | {"peft_type": types[random.integers(len(types))]})


def weights_are_cut(folder, random):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: random.integers(len(content))])


def a_longer_header_is_claimed(folder, random):
    content = (folder / WEIGHTS).read_bytes()
    claims = [2**63, 2**40, 10**8, len(content), 0]
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", claims[random.integers(len(claims))]) + content[8:])


def header_has_changed_bytes(folder, random):
    content = bytearray((folder / WEIGHTS).read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    content[random.integers(8 + length)] ^= int(random.integers(1, 256))
    (folder / WEIGHTS).write_bytes(content)


def huge_shapes(folder, random):
    def change(header):
        _one_tensor(header, random)["shape"] = [int(random.integers(10**6, 2**40)), 2**31]
        return header

    _header(folder, change)


def other_shapes(folder, random):
    def change(header):
        entry = _one_tensor(header, random)
        entry["shape"] = [int(np.prod(entry["shape"]))] if random.random() < 0.5 else [1, *entry["shape"]]
        return header

    _header(folder, change)


def another_dtype(folder, random):
    def change(header):
        types = ["I32", "U32", "F64", "F16", "BOOL", "X", 5]
        _one_tensor(header, random)["dtype"] = types[random.integers(len(types))]
        return header

    _header(folder, change)


def other_names(folder, random):
    def change(header):
        name = sorted(header)[-1]
        names = ["../../escape", "/etc/passwd", "", "x" * 10**5, name + ".default", "base_model.model.x\0"]
        return {key: value for key, value in header.items() if key != name} | {
            names[random.integers(len(names))]: header[name]
        }

    _header(folder, change)


def overlapping_tensors(folder, random):
    def change(header):
        header["again"] = dict(_one_tensor(header, random))
        return header

    _header(folder, change)


def not_finite(folder, random):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-4:] = struct.pack("<f", [float("nan"), float("inf"), -float("inf")][random.integers(3)])
    (folder / WEIGHTS).write_bytes(content)


def no_weights(folder, random):
    (folder / WEIGHTS).unlink()


def weights_are_a_folder(folder, random):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def weights_are_a_device(folder, random):
    (folder / WEIGHTS).unlink()
    os.symlink(["/dev/zero", "/dev/null", "/nowhere", "/dev/urandom"][random.integers(4)], folder / WEIGHTS)


def weights_are_a_pipe(folder, random):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def config_is_a_link(folder, random):
    (folder / CONFIG).unlink()
    os.symlink(["/dev/zero", "/nowhere", str(folder), "/proc/self/environ"][random.integers(4)], folder / CONFIG)


def a_pickle_instead(folder, random):
    (folder / WEIGHTS).unlink()
    contents = [
        b"",
        b"\x80\x02}.",
        b"cposix\nsystem\n(S'touch ran'\ntR.",
        b"\x80\x05\x96" + b"\xff" * 7 + b"\0",
        b"PK\x03\x04",
    ]
    (folder / "adapter_model.bin").write_bytes(contents[random.integers(len(contents))])


def a_card_that_is_no_text(folder, random):
    (folder / "README.md").write_bytes(random.bytes(100))


KINDS = {
    name: damage
    for name, damage in list(globals().items())
    if getattr(damage, "__module__", None) == __name__ and not name.startswith("_") and name != "any_json"
}

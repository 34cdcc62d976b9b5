"""What a pickle says, read without doing it: `read_pickle` builds dicts, lists, texts and numbers, and nothing else.

A pickle is a program for a machine with a stack. Python's machine imports what the program names and calls it. This one
has no import and no call: a class or function is a `Global`, its name; what it would be called for is an `Opaque`, which
holds nothing; and where `torch` would rebuild a tensor, there is a `Stored`, the place of its numbers in the file. So the
objects that trainers keep beside the weights (optimizers, schedulers, configurations) are passed over, whatever they are.
"""

from __future__ import annotations

import io
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple


#: Most instructions of one pickle: a state dict has some thirty for each tensor.
MAX_INSTRUCTIONS = 2_000_000


class PickleError(ValueError):
    """A pickle is damaged, or is no data."""


class Global(NamedTuple):
    """The name of a class or function."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Opaque:
    """Stands for an object of the class or function `kind` that was not built."""

    kind: str


class Storage(NamedTuple):
    """Numbers in the file: their type, as torch calls it, the key that they are stored by, and how many they are."""

    dtype: str
    key: str
    count: int


class Record(dict):
    """Stands for an object of a class that was asked for by name: its attributes, by name."""


class ScriptedModule(Record):
    """Stands for a module of `torch.jit.save`: what it holds, by name. Its code is in another part of the file."""


@dataclass(frozen=True)
class Stored:
    """A tensor that was not built: where its numbers are, and how they are laid out."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    @property
    def span(self) -> int:
        """How many numbers lie from the first to the last, 0 for an empty tensor."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


def read_pickle(
    file: bytes | BinaryIO, storages: dict[str, Storage] | None = None, records: Collection[str] = ()
) -> Any:
    """Return what one pickle holds, as plain data; a file is left after its last byte.

    Args:
        file: the pickle, or an open file of one or several.
        storages: takes every storage that the pickle points at, by its key, also those of objects that are passed over.
        records: names of classes, without their modules, whose objects are read as a `Record` of their attributes.

    Raises:
        PickleError: the pickle is damaged or too long, or asks for what no checkpoint has.
    """
    machine = _Machine({} if storages is None else storages, records)
    try:
        for count, (opcode, argument, _) in enumerate(
            pickletools.genops(io.BytesIO(file) if isinstance(file, bytes) else file)
        ):
            if count > MAX_INSTRUCTIONS:
                raise PickleError(f"it has more than {MAX_INSTRUCTIONS:,} instructions")
            if opcode.name == "STOP":
                return machine.stack[-1]
            machine.run(opcode.name, argument)
    except PickleError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, MemoryError) as error:
        raise PickleError(f"it is damaged ({type(error).__name__})") from error
    raise PickleError("it ends too early")


_MARK = object()

#: What nothing but an attack has called when a checkpoint is read. None of it would be; the file is refused with its name.
_ATTACKS = {f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "__import__", "input", "breakpoint")}
_ATTACKS |= {f"io.{name}" for name in ("open", "open_code", "FileIO")}
_ATTACKS |= {"torch.load", "torch.serialization.load", "torch.hub.load", "numpy.load", "operator.methodcaller"}
_ATTACKING_MODULES = {"os", "posix", "nt", "subprocess", "_posixsubprocess", "sys", "shutil", "socket", "importlib"}
_ATTACKING_MODULES |= {"imp", "runpy", "pty", "pickle", "_pickle", "dill", "cloudpickle", "marshal", "ctypes", "code"}
_ATTACKING_MODULES |= {"codeop", "timeit", "cProfile", "pdb", "bdb", "webbrowser", "urllib", "http", "requests", "pip"}
_ATTACKING_MODULES |= {"asyncio", "multiprocessing", "threading", "signal", "tempfile"}

#: Instructions that change nothing here: the state of objects that were not built, and the pickle's own frames.
_IDLE = {"PROTO", "FRAME"}
#: Instructions whose argument is the value.
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Opaque("set"),
}


class _Machine:
    """The stack and the memory of a pickle's program."""

    def __init__(self, storages: dict[str, Storage], records: Collection[str]):
        self.stack: list = []
        self.memory: dict[int, Any] = {}
        self.storages = storages
        self.records = records

    def run(self, name: str, argument: Any) -> None:
        """Follow one instruction.

        Raises:
            PickleError: no checkpoint needs it.
        """
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memory[int(argument)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memory[int(argument)])
        elif name not in _IDLE:
            handler = getattr(self, f"do_{name.lower()}", None)
            if handler is None:
                raise PickleError(f"it has the instruction {name}, which no checkpoint needs")
            handler(argument)

    def pop(self, count: int) -> list:
        """Take the last values off the stack.

        Raises:
            PickleError: there are fewer.
        """
        values = self.stack[len(self.stack) - count :]
        if len(values) != count or _MARK in values:
            raise PickleError("it is damaged (too few values)")
        del self.stack[len(self.stack) - count :]
        return values

    def pop_to_mark(self) -> list:
        """Take the values above the last mark off the stack, and the mark.

        Raises:
            PickleError: there is no mark.
        """
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise PickleError("it is damaged (no mark)")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    # ---- the stack

    def do_mark(self, _) -> None:
        self.stack.append(_MARK)

    def do_pop(self, _) -> None:
        self.stack.pop()

    def do_pop_mark(self, _) -> None:
        self.pop_to_mark()

    def do_dup(self, _) -> None:
        self.stack.append(self.stack[-1])

    def do_memoize(self, _) -> None:
        self.memory[len(self.memory)] = self.stack[-1]

    # ---- containers

    def do_list(self, _) -> None:
        self.stack.append(self.pop_to_mark())

    def do_tuple(self, _) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def do_tuple1(self, _) -> None:
        self.stack.append(tuple(self.pop(1)))

    def do_tuple2(self, _) -> None:
        self.stack.append(tuple(self.pop(2)))

    def do_tuple3(self, _) -> None:
        self.stack.append(tuple(self.pop(3)))

    def do_dict(self, _) -> None:
        items = self.pop_to_mark()
        self.stack.append({})
        self.set_items(items)

    def do_frozenset(self, _) -> None:
        self.pop_to_mark()
        self.stack.append(Opaque("frozenset"))

    def do_append(self, _) -> None:
        self.extend(self.pop(1))

    def do_appends(self, _) -> None:
        self.extend(self.pop_to_mark())

    def do_additems(self, _) -> None:
        self.pop_to_mark()

    def do_setitem(self, _) -> None:
        self.set_items(self.pop(2))

    def do_setitems(self, _) -> None:
        self.set_items(self.pop_to_mark())

    def extend(self, values: list) -> None:
        """Append to the list on top of the stack; what is no list keeps nothing."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def set_items(self, items: list) -> None:
        """Set entries of the dict on top of the stack, by names and numbers; what is no dict keeps nothing."""
        if isinstance(self.stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            self.stack[-1].update({key: value for key, value in pairs if isinstance(key, (str, int, float))})

    # ---- what Python's machine would import and call

    def do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Global(module, name))

    def do_stack_global(self, _) -> None:
        module, name = self.pop(2)
        self.stack.append(Global(str(module), str(name)))

    def do_reduce(self, _) -> None:
        function, arguments = self.pop(2)
        self.stack.append(self.stand_in(function, arguments))

    def do_newobj(self, _) -> None:
        self.do_reduce(None)

    def do_newobj_ex(self, _) -> None:
        kind, arguments, _ = self.pop(3)
        self.stack.append(self.stand_in(kind, arguments))

    def do_obj(self, _) -> None:
        kind, *arguments = self.pop_to_mark()
        self.stack.append(self.stand_in(kind, tuple(arguments)))

    def do_inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self.stand_in(Global(module, name), tuple(self.pop_to_mark())))

    def stand_in(self, function: Any, arguments: Any) -> Any:
        """Return what stands for the result of a call."""
        found = _stand_in(function, arguments)
        return Record() if isinstance(found, Opaque) and found.kind.rpartition(".")[2] in self.records else found

    def do_build(self, _) -> None:
        (state,) = self.pop(1)  # of an object that was not built, or of a record
        if isinstance(self.stack[-1], Record) and isinstance(state, dict):
            self.stack[-1].update(state)

    def do_binpersid(self, _) -> None:
        (identity,) = self.pop(1)
        if identity[0] == "module":  # before torch 1.6: (..., class of a module, its file, its source)
            self.stack.append(identity[1])
            return
        kind, storage_type, key, _, count = identity[:5]
        if kind != "storage":
            raise PickleError("it points at something that is no tensor")
        self.stack.append(Storage(_dtype_of(storage_type), str(key), _whole(count)))
        self.storages[str(key)] = self.stack[-1]


def _stand_in(function: Any, arguments: Any) -> Any:
    """Return what stands for the result of a call: a dict, the place of a tensor, or nothing but the name."""
    name = str(_of_python_3(function)) if isinstance(function, Global) else "object"
    if name in _ATTACKS or name.partition(".")[0] in _ATTACKING_MODULES:
        raise PickleError(f"it asks to call {name[:60]}, and a pickle can run code: nothing in this one was run")
    if isinstance(function, Global) and function.module.partition(".")[0] == "__torch__":
        return ScriptedModule()
    if name in ("collections.OrderedDict", "collections.defaultdict"):
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        return {key: value for key, value in pairs if isinstance(key, (str, int, float))}
    if name == "torch.Size":
        return tuple(arguments[0])
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return arguments[0]
    if name == "torch._tensor._rebuild_from_type_v2":  # (function, class, arguments, attributes)
        return _stand_in(arguments[0], arguments[2])
    if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"):
        storage, offset, shape, stride = arguments[:4]
        dtype = _dtype_of(arguments[6]) if name.endswith("v3") else storage.dtype
        if not isinstance(storage, Storage) or len(shape) != len(stride):
            raise PickleError("it has a tensor without numbers")
        return Stored(storage, _whole(offset), tuple(map(_whole, shape)), tuple(map(_whole, stride)), dtype)
    return Opaque(name)


def _of_python_3(name: Global) -> Global:
    """Return the name that Python 3 has for what pickles up to protocol 2 (torch's) call as Python 2 did."""
    if tuple(name) in NAME_MAPPING:
        return Global(*NAME_MAPPING[tuple(name)])
    return Global(IMPORT_MAPPING.get(name.module, name.module), name.name)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise PickleError("a tensor has a size that is no whole number")
    return value


def _dtype_of(storage_type: Any) -> str:
    """Return the name of a type in torch: `FloatStorage` is float32; those without numbers of one type are themselves."""
    name = storage_type.name if isinstance(storage_type, Global) else str(storage_type)
    return _STORAGE_TYPES.get(name, name)


_STORAGE_TYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}

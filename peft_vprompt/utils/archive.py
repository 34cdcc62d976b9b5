"""Files of `torch.save` and `torch.jit.save`, zip archives and the form before torch 1.6: their data, and tensors on demand.

Nothing is allocated for what a file claims to hold: a tensor is read when it is asked for, and only as many bytes as are
there.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .pickled import PickleError, Storage, Stored, read_pickle


#: Largest part of an archive that holds no tensors.
MAX_DATA_BYTES = 256 * 2**20

#: First number in a file of `torch.save` before torch 1.6, and the version after it.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001


class Archive:
    """A file of `torch.save`.

    Attributes:
        content: what was saved, with a `Stored` in the place of every tensor and an `Opaque` for every other object.

    Raises:
        PickleError: the file is damaged, or is no such file.
    """

    content: Any

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.size = self.path.stat().st_size
        if not self.size:
            raise PickleError("it is empty")
        self._find: Callable[[Storage], tuple[int, int]]
        if zipfile.is_zipfile(self.path):
            self._open_zip()
        else:
            with self.path.open("rb") as file:
                bounded: Any = _Bounded(file, self.size)
                self._open_legacy(bounded)

    def read(self, stored: Stored) -> Tensor:
        """Return a tensor.

        Raises:
            PickleError: its numbers are not all in the file, are repeated, or are not of a type that torch has.
        """
        dtype = dtype_named(stored.dtype)
        if dtype is None:
            raise PickleError(f"its type {stored.dtype[:60]!r} is none of torch's")
        if not stored.span:
            return torch.empty(stored.shape, dtype=dtype)
        if math.prod(stored.shape) > stored.span:
            raise PickleError("it has fewer numbers than places")
        start, length = self._find(stored.storage)
        first, span = stored.offset * dtype.itemsize, stored.span * dtype.itemsize
        if first + span > length:
            raise PickleError("its numbers are not all in the file")
        with self.path.open("rb") as file:
            file.seek(start + first)
            content = bytearray(file.read(span))
        if len(content) != span:
            raise PickleError("the file ends too early")
        return torch.frombuffer(content, dtype=dtype).as_strided(stored.shape, stored.stride).clone()

    # ---- zip archives

    def _open_zip(self) -> None:
        try:
            with zipfile.ZipFile(self.path) as archive:
                records = {record.filename: record for record in archive.infolist()}
                name = next((name for name in records if name.rpartition("/")[2] == "data.pkl"), None)
                if name is None:
                    raise PickleError("it is a zip file without tensors")
                root = name.removesuffix("data.pkl")
                read = (f"{root}data/", f"{root}byteorder", name)  # else the code of scripted modules, which is not
                self._require_plain(record for record in records.values() if record.filename.startswith(read))
                if f"{root}byteorder" in records and archive.read(f"{root}byteorder").strip() != b"little":
                    raise PickleError("its numbers are in the byte order of another machine")
                self.content = read_pickle(archive.read(name))
        except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, RuntimeError) as error:
            raise PickleError("it is a damaged zip file") from error
        self._find = lambda storage: self._find_in_zip(records, f"{root}data/{storage.key}")

    def _require_plain(self, records) -> None:
        """Refuse a zip file that is larger inside than outside: torch does not compress."""
        for record in records:
            compressed = record.compress_type != zipfile.ZIP_STORED
            pickled = record.filename.rpartition("/")[2] == "data.pkl"
            if compressed or record.file_size > self.size or pickled and record.file_size > MAX_DATA_BYTES:
                raise PickleError(
                    f"its part {record.filename[:60]!r} is compressed, or larger than the file: torch.save writes none so"
                )

    def _find_in_zip(self, records: dict[str, zipfile.ZipInfo], name: str) -> tuple[int, int]:
        if name not in records:
            raise PickleError("its numbers are not in the file")
        record = records[name]
        with self.path.open("rb") as file:  # the local header has names of lengths of its own
            file.seek(record.header_offset)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise PickleError("it is a damaged zip file")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        return record.header_offset + 30 + name_length + extra_length, record.file_size

    # ---- before torch 1.6: pickles one after another, then the numbers

    def _open_legacy(self, file: BinaryIO) -> None:
        if file.read(1) != b"\x80":
            raise PickleError("it is no file of torch.save")
        file.seek(0)
        if read_pickle(file) != LEGACY_MAGIC or read_pickle(file) != LEGACY_VERSION:
            raise PickleError("it is a pickle of another kind, not a file of torch.save")
        read_pickle(file)  # sizes of the machine's integers
        storages: dict[str, Storage] = {}
        self.content = read_pickle(file, storages)
        keys = read_pickle(file)
        if not isinstance(keys, list):
            raise PickleError("it is damaged (no list of its tensors)")
        places = {}
        for key in map(str, keys):
            count = file.read(8)
            dtype = dtype_named(storages[key].dtype) if key in storages else None
            if len(count) < 8 or dtype is None:
                raise PickleError("it is damaged (numbers of no tensor)")
            places[key] = (file.tell(), struct.unpack("<q", count)[0] * dtype.itemsize)
            if not 0 <= places[key][1] <= self.size - file.tell():
                raise PickleError("its numbers are not all in the file")
            file.seek(places[key][1], os.SEEK_CUR)
        self._find = lambda storage: self._find_legacy(places, storage.key)

    @staticmethod
    def _find_legacy(places: dict[str, tuple[int, int]], key: str) -> tuple[int, int]:
        if key not in places:
            raise PickleError("its numbers are not in the file")
        return places[key]


def dtype_named(name: str) -> torch.dtype | None:
    """Return the type of a name in torch, None where torch has none."""
    dtype = getattr(torch, name, None)
    return dtype if isinstance(dtype, torch.dtype) else None


class _Bounded:
    """A file that is never asked for more than it holds, whatever the length that something in it claims."""

    def __init__(self, file: BinaryIO, size: int):
        self.file = file
        self.size = size
        self.readline = file.readline
        self.tell = file.tell
        self.seek = file.seek

    def read(self, count: int) -> bytes:
        """Read at most `count` bytes."""
        return self.file.read(min(count, self.size))

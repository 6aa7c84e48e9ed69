"""Arrays W, b, V from a file that may be anything: npz without pickles, or safetensors.

Every size that a file declares is compared with the file itself and with memory before anything is
allocated, and nothing in it is ever executed.
"""

from __future__ import annotations

import io
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import torch

from kolmo import memory, reading
from kolmo.errors import InputError
from kolmo.text import shown

NAMES = ("W", "b", "V")
_SUFFIXES = (".npz", ".safetensors")
#: bytes of the longest header of an array, or of all of a safetensors file's
_NPY_HEADER, _SAFETENSORS_HEADER = 4096, 2**16
#: an array of more bytes than this that is packed more tightly than this is no network's
_PACKED, _TIGHTEST = 2**24, 50
#: what zipfile is seen to raise on broken files
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, OverflowError, RuntimeError, ValueError,
)  # fmt: skip
#: number types of safetensors that are real numbers
_REAL = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8"}


def load(path: str | Path) -> dict[str, torch.Tensor]:
    """W, b and V in float64; raises InputError that names the file and array."""
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise InputError(f"{path}: expected weights in a file that ends in {' or '.join(_SUFFIXES)}")
    with reading.opened(path) as file:
        return _safetensors(file, path) if path.suffix == ".safetensors" else _npz(file, path)


def _npz(file: BinaryIO, path: Path) -> dict[str, torch.Tensor]:
    try:
        with zipfile.ZipFile(file) as archive:
            return {name: _member(archive, name, path) for name in NAMES}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or 'not an npz file'}") from error
    except _BROKEN as error:
        raise InputError(f"{path}: not an npz file of plain arrays") from error


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> torch.Tensor:
    found = [info for info in archive.infolist() if info.filename == f"{name}.npy"]
    if len(found) != 1:
        what = "is missing; expected arrays W, b and V" if not found else "is there twice"
        raise InputError(f"{path}: array {name} {what}")
    info = found[0]
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{path}: array {name} is packed in a way that numpy does not write")
    with archive.open(info) as member:
        shape, fortran, dtype, start = _header(member, f"{path}: array {name}")
        count = _numbers(shape, f"{path}: array {name}")
        declared = count * dtype.itemsize
        if declared + start != info.file_size:
            raise InputError(
                f"{path}: array {name} of shape {shape} needs {declared} bytes, not what is there"
            )
        if declared > _PACKED and declared > _TIGHTEST * info.compress_size:
            raise InputError(
                f"{path}: array {name} would unpack {info.compress_size} bytes to {declared}: not weights"
            )
        data = member.read(declared)  # to the end, where the checksum is compared
        if len(data) != declared:
            raise InputError(f"{path}: array {name} is cut off")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64).copy())


def _header(member: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, order and type of an npy array, and where its numbers start."""
    start = member.read(12)
    if (
        start[:6] != np.lib.format.MAGIC_PREFIX
        or start[6:8] not in (b"\x01\x00", b"\x02\x00")
        or len(start) < 12
    ):
        raise InputError(f"{where} is not in numpy's format")
    first = start[6] == 1
    length = int.from_bytes(start[8:10] if first else start[8:12], "little")
    if not 2 <= length <= _NPY_HEADER:
        raise InputError(f"{where} has a header of {length} bytes, expected at most {_NPY_HEADER}")
    whole = start + member.read(length - (2 if first else 0))
    stream = io.BytesIO(whole[8:])
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of headers that only Python 2 wrote
            shape, fortran, dtype = read(stream)
    # the parser is Python's own for literals, with all that it may raise
    except (
        ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError, Warning,
    ) as error:  # fmt: skip
        raise InputError(f"{where} has a header that is not numpy's") from error
    if dtype.hasobject:
        raise InputError(f"{where} is pickled: not an npz file of plain arrays")
    if dtype.kind not in "fiu":
        raise InputError(f"{where} has type {shown(str(dtype))}, expected real numbers")
    return shape, fortran, dtype, len(whole)


def _numbers(shape: tuple[int, ...], where: str) -> int:
    """How many numbers an array of this shape has, once it is found to fit into memory."""
    if not 1 <= len(shape) <= 3 or any(isinstance(n, bool) or n < 1 for n in shape):
        raise InputError(f"{where} has shape {shown(shape)}, expected (layers, ...)")
    count = math.prod(shape)
    # as read, in float64, and the network's own copy
    memory.require(3 * 8 * count, f"{where} of shape {shown(shape)}", "take a smaller network")
    return count


def _safetensors(file: BinaryIO, path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    size = reading.size(file)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(_SAFETENSORS_HEADER, size - 8):
        raise InputError(
            f"{path}: not a safetensors file of weights: its header would have {length} bytes, "
            f"expected at most {min(_SAFETENSORS_HEADER, max(0, size - 8))}"
        )
    arrays = {}
    try:
        with safe_open(path, framework="pt") as content:
            there = set(content.keys())
            for name in NAMES:
                if name not in there:
                    raise InputError(f"{path}: array {name} is missing; expected arrays W, b and V")
                declared = content.get_slice(name)
                if declared.get_dtype() not in _REAL:
                    raise InputError(
                        f"{path}: array {name} has type {declared.get_dtype()}, expected real numbers"
                    )
                _numbers(tuple(declared.get_shape()), f"{path}: array {name}")
                arrays[name] = content.get_tensor(name).to(torch.float64, copy=True)
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file: {error}") from error
    return arrays


def save(arrays: dict[str, np.ndarray], file: BinaryIO, format: str) -> None:
    """Write arrays as 'npz' or 'safetensors'."""
    if format == "npz":
        np.savez(file, **arrays)
        return
    from safetensors.numpy import save as packed

    file.write(packed(arrays))

"""Weights with shapes, types, headers and bytes that are wrong, as npz and safetensors."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
from fuzzing import damage
from hypothesis import strategies as st

SHAPES: list[tuple[int, ...]] = [
    (), (0,), (3,), (3, 4), (3, 4, 2), (3, 2, 4), (2, 4, 2), (3, 4, 3), (3, 4, 2, 1), (1, 1, 1), (3, 0, 2),
    (1, 4, 2),
]  # fmt: skip
TYPES = ["f8", "f4", "f2", ">f8", "i8", "u1", "?", "c16", "U3", "S2", "O", "M8[s]", "V4", "g"]
CLAIMS = [
    "(3, 4, 2)", "(1000000000, 4, 2)", "(99999999999999999999,)", "(-3, 4, 2)", "(True, 4, 2)",
    "(3.0, 4, 2)", "()", "(3, 4, 2, 1, 1, 1, 1)", "[3, 4, 2]", "'x'", "(" * 200 + ")" * 200, "(2**9,)",
    "(0, 4, 2)", "(3L, 4L, 2L)",
]  # fmt: skip


def array(draw: Any, valid: dict[str, bytes], name: str) -> np.ndarray:
    """An array of the valid weights, or one of another shape, type or value."""
    with np.load(io.BytesIO(valid["weights.npz"])) as archive:
        found = archive[name]
    if draw(st.integers(0, 2)):
        return found
    shape = draw(st.sampled_from([found.shape, *SHAPES]))
    values = np.resize(found, shape)
    if draw(st.booleans()) and values.size:
        values.flat[0] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 1e3]))
    with np.errstate(all="ignore"):
        values = values.astype("f8").astype(draw(st.sampled_from(["f8", *TYPES])))
    return np.asfortranarray(values) if draw(st.booleans()) else values


def npz(draw: Any, valid: dict[str, bytes]) -> bytes:
    """An archive of such arrays, packed or not, whose headers may claim other sizes."""
    arrays = {name: array(draw, valid, name) for name in ("W", "b", "V")}
    if draw(st.integers(0, 9)) == 0:
        arrays[draw(st.sampled_from(["W", "x", "b.npy", "../W"]))] = arrays.pop("W")
    stream = io.BytesIO()
    (np.savez_compressed if draw(st.booleans()) else np.savez)(stream, **arrays)
    content = stream.getvalue()
    if draw(st.integers(0, 3)) == 0:
        claim = draw(st.sampled_from(CLAIMS)).encode()
        content = content.replace(b"(3, 4, 2)", claim, 1)
    if draw(st.integers(0, 3)) == 0:  # sizes in the local header and in the directory
        for mark, offset in ((b"PK\x03\x04", 18), (b"PK\x01\x02", 20)):
            at = content.find(mark)
            if at >= 0 and draw(st.booleans()):
                size = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 10**9]))
                at += offset + 4 * draw(st.integers(0, 1))
                content = content[:at] + struct.pack("<I", size) + content[at + 4 :]
    return damage(draw, content) if draw(st.booleans()) else content


def safetensors(draw: Any, valid: dict[str, bytes]) -> bytes:
    """A file whose header has entries that are changed, or a length that is."""
    content = valid["weights.safetensors"]
    length = struct.unpack("<Q", content[:8])[0]
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([n for n in header if n != "__metadata__"] or ["W"]))
        entry = header.setdefault(name, {})
        kind = draw(st.sampled_from(["dtype", "shape", "data_offsets", "drop", "rename"]))
        if kind == "dtype":
            entry["dtype"] = draw(
                st.sampled_from(["F64", "F32", "I64", "BOOL", "BF16", "C64", "F8_E4M3", "X", 1])
            )
        elif kind == "shape":
            entry["shape"] = draw(
                st.sampled_from([*map(list, SHAPES), [2**63], [-1], [2**40, 2**40], "x", None])
            )
        elif kind == "data_offsets":
            entry["data_offsets"] = draw(st.sampled_from([[0, 0], [0, 2**63], [8, 0], [0, 192], [-1, 1], []]))
        else:
            header.pop(name)
            if kind == "rename":
                header[draw(st.sampled_from(["w", "b", "V", "W", ""]))] = entry
    packed = draw(st.sampled_from([b"", b"", b" " * 70_000])) + json.dumps(header).encode()
    length = draw(st.sampled_from([len(packed)] * 5 + [0, 1, 2**63, 2**64 - 1, 10**8]))
    content = struct.pack("<Q", length) + packed + rest
    return damage(draw, content) if draw(st.booleans()) else content

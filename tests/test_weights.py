"""weights.npz and weights.safetensors from a stranger: nothing runs, and no claim is believed."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import refused, small_case

from kolmo import case, weights
from kolmo.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_case(tmp_path / "case")


# ------------------------------------------------------------------ npz


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "weights.npz") as archive:
        return {name: archive[name] for name in weights.NAMES}


def repacked(path: Path, **members: bytes) -> None:
    """An archive, deflated, with these bytes in place of members."""
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, raw in {**content, **{f"{n}.npy": m for n, m in members.items()}}.items():
            new.writestr(name, raw)


def header(shape: object, descr: str = "<f8") -> bytes:
    """An npy header, as long as numpy makes it."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (self.path,)


def test_nothing_is_unpickled(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An array of objects, in an archive and bare."""
    trap = np.array([_Touch(folder / "trap")], dtype=object)
    np.savez(folder / "weights.npz", **{**arrays(folder), "W": trap})
    assert "array W is pickled" in refused(capsys, "evaluate", folder)
    (folder / "weights.npz").write_bytes(trap.dumps())
    assert "not an npz file" in refused(capsys, "evaluate", folder)
    assert not (folder / "trap").exists()
    trap.item().__reduce__()[0](str(folder / "trap"))  # the trap works
    assert (folder / "trap").exists()


CLAIMS = {
    "more than memory": ("(1000000000000, 4, 2)", "GiB of memory"),
    "more than the file": ("(1000000, 4, 2)", "needs 64000000 bytes, not what is there"),
    "less than the file": ("(2, 4, 2)", "not what is there"),
    "negative": ("(-3, 4, 2)", "has shape (-3, 4, 2), expected"),
    "truth values": ("(True, 4, 2)", "has shape (True, 4, 2), expected"),
    "nothing": ("(0, 4, 2)", "has shape (0, 4, 2), expected"),
    "scalar": ("()", "has shape (), expected"),
    "no tuple": ("7", "has a header that is not numpy's"),
    "deep": ("(" * 300 + ")" * 300, "has a header that is not numpy's"),
    "Python 2": ("(3L, 4L, 2L)", "has a header that is not numpy's"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_of_a_header_are_compared_with_the_file(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape, message = CLAIMS[name]
    repacked(folder / "weights.npz", W=header(shape) + bytes(8 * 24))
    line = refused(capsys, "evaluate", folder)
    assert message in line and "weights.npz: array W" in line


def test_a_zip_bomb_is_not_unpacked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """64 MiB of zeros in 64 KiB: refused by the sizes that are declared."""
    repacked(folder / "weights.npz", W=header((2**22, 2, 1)) + bytes(2**26))
    tracemalloc.start()
    line = refused(capsys, "evaluate", folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "would unpack" in line and peak < 5 * 2**20


def test_a_header_bomb_is_not_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A header of version 2 may claim 4 GiB."""
    raw = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**26) + b" " * 2**26
    repacked(folder / "weights.npz", W=raw)
    assert "header of 67108864 bytes" in refused(capsys, "evaluate", folder)


def test_the_checksum_is_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One bit of a stored array flipped."""
    path = folder / "weights.npz"
    raw = bytearray(path.read_bytes())
    at = raw.find(arrays(folder)["W"].tobytes())
    raw[at + 7] ^= 1
    path.write_bytes(raw)
    assert "not an npz file" in refused(capsys, "evaluate", folder)


def test_the_checksum_of_a_packed_array_is_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is read when the last byte is unpacked."""
    path = folder / "weights.npz"
    repacked(path)
    with zipfile.ZipFile(path) as archive:
        checksum = struct.pack("<I", archive.getinfo("V.npy").CRC)
    path.write_bytes(path.read_bytes().replace(checksum, b"\0\0\0\0"))
    assert "not an npz file" in refused(capsys, "evaluate", folder)


def test_an_array_that_is_there_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        zipfile.ZipFile(folder / "weights.npz", "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("W.npy", b"")
    assert "array W is there twice" in refused(capsys, "evaluate", folder)


def test_what_numpy_writes_is_read(folder: Path) -> None:
    """Fortran order, both byte orders, other sizes of numbers, packed or not."""
    for change in (
        np.asfortranarray,
        lambda a: a.astype(">f8"),
        lambda a: a.astype("f4"),
        np.ascontiguousarray,
    ):
        for save in (np.savez, np.savez_compressed):
            given = {name: change(array) for name, array in arrays(folder).items()}
            save(folder / "other.npz", **given)
            found = weights.load(folder / "other.npz")
            assert all(np.array_equal(found[name].numpy(), given[name]) for name in weights.NAMES)
            assert all(found[name].dtype == torch.float64 for name in weights.NAMES)


# ------------------------------------------------------------------ safetensors


def test_safetensors_round_trip(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Either format gives the same network; both at once are refused, and not made."""
    given = case.load(folder)
    with pytest.raises(InputError, match=r"has weights\.npz; remove it"):
        case.save(given, folder, "safetensors")
    (folder / "weights.npz").unlink()
    case.save(given, folder, "safetensors")
    assert "weights.safetensors" in (folder / "problem.toml").read_text()
    found = case.load(folder)
    for name in weights.NAMES:
        assert torch.equal(getattr(found.network, name), getattr(given.network, name))
    (folder / "weights.npz").write_bytes(b"")
    assert "weights.npz and weights.safetensors, expected one" in refused(capsys, "evaluate", folder)


BAD_SAFETENSORS = {
    "header bomb": (struct.pack("<Q", 10**8) + b"{" * 100, "its header would have 100000000 bytes"),
    "length beyond 64 bits": (b"\xff" * 16, "its header would have 18446744073709551615 bytes"),
    "long header": (struct.pack("<Q", 2**17) + b"{}".ljust(2**17), "expected at most 65536"),
    "empty": (b"", "expected at most 0"),
    "no JSON": (struct.pack("<Q", 4) + b"{{{{", "not a safetensors file"),
    "no arrays": (struct.pack("<Q", 2) + b"{}", "array W is missing"),
    "npz": (b"PK\x03\x04" + bytes(100), "its header would have"),
    "beyond the file": (
        struct.pack("<Q", 72) + b'{"W":{"dtype":"F64","shape":[9999999,4,2],"data_offsets":[0,639999936]}}',
        "not a safetensors file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SAFETENSORS)
def test_bad_safetensors(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = BAD_SAFETENSORS[name]
    (folder / "problem.toml").write_text("")
    (folder / "weights.npz").unlink()
    (folder / "weights.safetensors").write_bytes(content)
    line = refused(capsys, "evaluate", folder)
    assert message in line and "weights.safetensors" in line

"""Data sets: reproducible synthetic ones, exact CSV files, and one-line errors for bad files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kolmo import data
from kolmo.errors import InputError

HEADER = b"x1,x2,label\n"
GOOD = b"0.5,1.5,0\n-0.5,0.25,1\n"

BAD_FILES: dict[str, bytes] = {
    "empty": b"",
    "blank line": b"\n",
    "only spaces": b"   \n",
    "header only": HEADER,
    "no header": GOOD,
    "other header": b"a,b,label\n" + GOOD,
    "header without features": b"label\n0\n1\n",
    "ragged, short": HEADER + GOOD + b"1.0,0\n",
    "ragged, long": HEADER + GOOD + b"1.0,2.0,3.0,0\n",
    "label 2": HEADER + GOOD + b"0.1,0.2,2\n",
    "label -1": HEADER + GOOD + b"0.1,0.2,-1\n",
    "label 0.5": HEADER + GOOD + b"0.1,0.2,0.5\n",
    "one class": HEADER + b"0.1,0.2,1\n0.3,0.4,1\n",
    "nan": HEADER + GOOD + b"nan,0.2,1\n",
    "nan label": HEADER + GOOD + b"0.1,0.2,nan\n",
    "inf": HEADER + GOOD + b"0.1,-inf,1\n",
    "overflow": HEADER + GOOD + b"0.1,1e999,1\n",
    "text": HEADER + GOOD + b"0.1,hello,1\n",
    "empty field": HEADER + GOOD + b"0.1,,1\n",
    "semicolons": b"x1;x2;label\n0.5;1.5;0\n",
    "binary": bytes(range(256)) * 4,
    "utf-16": ("x1,x2,label\n" + "0.5,1.5,0\n").encode("utf-16"),
    "zeros": b"\x00" * 64,
    "zeros below the header": HEADER + b"\x00\x00\x00\n",
    "unclosed quote": HEADER + b'"0.5,1.5,0\n-0.5,0.25,1\n',
    "newline in a number": HEADER + b'"0.5\n7",1.5,0\n',
    "newline in the header": b'"x1\ny",x2,label\n' + GOOD,
    "huge field": HEADER + b"0.1," + b"9" * 200_000 + b",1\n",
}


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        data.from_csv(path)
    return str(caught.value)


@pytest.mark.parametrize("name", list(BAD_FILES))
def test_bad_files_are_refused_in_one_line_with_the_path(name: str, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(BAD_FILES[name])
    text = message(path)
    assert str(path) in text
    assert len(text.splitlines()) == 1 and len(text) < 300 + len(str(path))


def test_good_file_is_read(tmp_path: Path) -> None:
    """The good rows of the bad files are good; blank lines and CRLF are allowed."""
    path = tmp_path / "points.csv"
    path.write_bytes((HEADER + GOOD + b"\n").replace(b"\n", b"\r\n"))
    found = data.from_csv(path)
    assert found.points.tolist() == [[0.5, 1.5], [-0.5, 0.25]] and found.labels.tolist() == [0, 1]
    assert found.points.dtype == torch.float64 and found.labels.dtype == torch.int64
    assert (found.dim, len(found), found.radius) == (2, 2, 1.5)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path, tmp_path / "absent" / "points.csv"):
        text = message(path)
        assert str(path) in text and len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "line"), [("label 2", 4), ("nan", 4), ("text", 4), ("ragged, short", 4), ("empty field", 4)]
)
def test_the_line_is_named(name: str, line: int, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(BAD_FILES[name])
    assert f"line {line}" in message(path)


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.data())
def test_csv_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    """Points come back bit for bit, denormals and signed zeros included."""
    dim = draw.draw(st.integers(1, 4))
    rows = draw.draw(st.lists(st.tuples(*[finite] * dim), min_size=2, max_size=8))
    labels = torch.tensor(
        [0, 1, *draw.draw(st.lists(st.integers(0, 1), min_size=len(rows) - 2, max_size=len(rows) - 2))]
    )
    original = data.Dataset(torch.tensor(rows, dtype=torch.float64), labels)
    path = tmp_path_factory.mktemp("round") / "points.csv"
    data.to_csv(original, path)
    again = data.from_csv(path)
    assert again.points.numpy().tobytes() == original.points.numpy().tobytes()
    assert torch.equal(again.labels, original.labels)


@pytest.mark.parametrize("kind", sorted(data.KINDS))
@given(samples=st.integers(4, 80), seed=st.integers(0, 2**31))
def test_synthetic_sets(kind: str, samples: int, seed: int) -> None:
    """Reproducible by seed, the size asked for, balanced classes, inside |x| < 3.5."""
    first, again = (data.synthetic(kind, samples, None, seed) for _ in range(2))
    assert torch.equal(first.points, again.points) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.points, data.synthetic(kind, samples, None, seed + 1).points)
    assert len(first) == samples and first.dim == (1 if kind == "interval" else 2)
    assert set(first.labels.tolist()) == {0, 1}
    assert abs(int(first.labels.sum()) - samples / 2) <= 1
    assert first.radius < 3.5


@pytest.mark.parametrize("kind", sorted(data.KINDS))
def test_synthetic_noise_spreads(kind: str) -> None:
    """`noise` is taken: 0 and 0.3 differ, and 0 is deterministic geometry of radius below 2.5."""
    sharp, blurred = data.synthetic(kind, 40, 0.0, 0), data.synthetic(kind, 40, 0.3, 0)
    assert not torch.equal(sharp.points, blurred.points)
    assert sharp.radius < 2.5


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("moon", 20, None, 0), "data.kind"), (("", 20, None, 0), "data.kind"),
        (("moons", 20, -0.1, 0), "data.noise"), (("moons", 20, np.nan, 0), "data.noise"),
        (("moons", 20, np.inf, 0), "data.noise"), (("moons", 20, "0.1", 0), "data.noise"),
        (("moons", 1, None, 0), "data.samples"), (("xor", 0, None, 0), "data.samples"),
        (("blobs", 2.5, None, 0), "data.samples"), (("spirals", -4, None, 0), "data.samples"),
    ],
)  # fmt: skip
def test_bad_synthetic_arguments_name_the_key(arguments: tuple, key: str) -> None:
    with pytest.raises(InputError, match=rf"^{key}: "):
        data.synthetic(*arguments)


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        ([[0.0]], [0, 1]), ([0.0, 1.0], [0, 1]), ([[0.0], [np.nan]], [0, 1]), ([[0.0], [np.inf]], [0, 1]),
        ([[0.0], [1.0]], [0, 2]), ([[0.0], [1.0]], [0, 0]), ([[0.0], [1.0]], [0.5, 1]), ([[], []], [0, 1]),
        ([[0.0], [1.0]], [[0], [1]]), ([[0.0], [1.0]], [np.nan, 1]),
    ],
)  # fmt: skip
def test_bad_arrays_raise(points: list, labels: list) -> None:
    with pytest.raises(InputError, match=r"^data: "):
        data.Dataset(torch.tensor(points), torch.tensor(labels))


def test_byte_order_marks_and_windows_lines(tmp_path: Path) -> None:
    """What spreadsheets write: a byte order mark, CRLF, spaces, labels as 1.0."""
    path = tmp_path / "sheet.csv"
    path.write_bytes(b"\xef\xbb\xbfx1,label\r\n0.5, 1.0\r\n-0.5,0\r\n")
    found = data.from_csv(path)
    assert found.points.tolist() == [[0.5], [-0.5]]
    assert found.labels.tolist() == [1, 0]

"""Images: files and what is wrong with them, the split of the digits, augmentation."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import arrays_of, folder_of

from kolmo.errors import InputError
from kolmo.images import Augmentation, digits, load, moved
from kolmo.images.cifar import ARRAYS, LAYOUTS

# ------------------------------------------------------------------ files


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
@pytest.mark.parametrize("inside", [True, False], ids=["archive's-folder", "folder-around-it"])
def test_the_binary_version_is_read_as_written(kind: str, inside: bool, tmp_path: Path) -> None:
    """Pixel by pixel, from the archive's folder or from the one it was unpacked in."""
    own = tmp_path / LAYOUTS[kind].folder
    images, labels = folder_of(kind, own)
    data = load(kind, own if inside else tmp_path)
    assert data.classes == LAYOUTS[kind].classes and data.shape == (3, 32, 32)
    np.testing.assert_array_equal(data.train.images.numpy(), images)
    np.testing.assert_array_equal(data.train.labels.numpy(), labels)
    expected = images.reshape(len(images), 3, -1).transpose(1, 0, 2).reshape(3, -1).astype(float)
    np.testing.assert_allclose(data.mean, expected.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(data.std, expected.std(axis=1), rtol=1e-6)
    assert data.mirror and data.margin == 4


def test_arrays_are_read_as_written(tmp_path: Path) -> None:
    made = arrays_of(tmp_path)
    data = load("cifar10", tmp_path)
    np.testing.assert_array_equal(data.train.images.permute(0, 2, 3, 1), made["train_images.npy"])
    np.testing.assert_array_equal(data.test.labels, made["test_labels.npy"])


def refusal(kind: str, folder: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        load(kind, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_a_missing_folder_says_what_was_expected(kind: str, tmp_path: Path) -> None:
    """Files, archive and checksum; the same where the folder is there and empty, or not given."""
    layout = LAYOUTS[kind]
    for folder in (tmp_path / "nowhere", tmp_path, ""):
        line = refusal(kind, folder)
        assert all(text in line for text in (layout.train[0], layout.test, layout.archive, layout.md5)), line


def test_the_pickled_version_is_not_read(tmp_path: Path) -> None:
    """Its folder, or the one around it: one line that names the binary one, and nothing is unpickled."""
    own = tmp_path / "cifar-10-batches-py"
    own.mkdir()
    (own / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path / "executed") + b"'\ntR.")
    for folder in (own, tmp_path):
        line = refusal("cifar10", folder)
        assert "pickled" in line and LAYOUTS["cifar10"].md5 in line
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
@pytest.mark.parametrize("cut", [1, 1000, "all", "record"])
def test_truncated_files_are_named(kind: str, cut: int | str, tmp_path: Path) -> None:
    layout = LAYOUTS[kind]
    folder_of(kind, tmp_path)
    path = tmp_path / layout.train[-1]
    content = path.read_bytes()
    left = {"all": 0, "record": len(content) - layout.record}.get(str(cut)) if isinstance(cut, str) else -cut
    path.write_bytes(content[:left])
    # CIFAR-100 has one file: with a record less, a class has no images
    assert str(path) in refusal(kind, tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder_of("cifar10", tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    line = refusal("cifar10", tmp_path)
    assert "data_batch_3.bin" in line and "cifar-10-binary.tar.gz" in line


@pytest.mark.parametrize("name", ["test_batch.bin", "data_batch_4.bin"])
def test_labels_out_of_range_are_named(name: str, tmp_path: Path) -> None:
    """With the file and the record's number."""
    folder_of("cifar10", tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[4 * 3073] = 10
    path.write_bytes(content)
    line = refusal("cifar10", tmp_path)
    assert str(path) in line and "record 4 has label 10, expected 0 to 9" in line


def test_classes_without_images_are_named(tmp_path: Path) -> None:
    """CIFAR-10's records with labels of nine classes."""
    folder_of("cifar10", tmp_path)
    for name in LAYOUTS["cifar10"].train:
        content = bytearray((tmp_path / name).read_bytes())
        content[9 * 3073] = 8
        (tmp_path / name).write_bytes(content)
    assert "9 classes, expected 10; class 9 has no images" in refusal("cifar10", tmp_path)


def test_other_labels_in_arrays_are_named(tmp_path: Path) -> None:
    labels = arrays_of(tmp_path)["test_labels.npy"]
    assert "10 classes, expected 100; class 10" in refusal("cifar100", tmp_path)
    labels[3] = -1
    np.save(tmp_path / "test_labels.npy", labels)
    line = refusal("cifar10", tmp_path)
    assert "test_labels.npy: image 3 has label -1, expected 0 to 9" in line


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("damage", ["cut", "pickled", "shape", "type", "missing"])
def test_damaged_arrays_are_named(name: str, damage: str, tmp_path: Path) -> None:
    array, path = arrays_of(tmp_path)[name], tmp_path / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "pickled":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    elif damage == "shape":
        np.save(path, array[None])
    elif damage == "type":
        np.save(path, array.astype(np.float32))
    else:
        path.unlink()
    assert str(path) in refusal("cifar10", tmp_path)


def test_other_sets_are_refused() -> None:
    assert "did you mean 'cifar10'" in refusal("cifar", "")
    assert "digits are not in a folder" in refusal("digits", "somewhere")


# ------------------------------------------------------------------ digits, augmentation


def test_digits_are_split_by_the_seed() -> None:
    """Stratified: a third of every class; disjoint; the same for the same seed, another for another."""
    data = digits(3)
    assert len(data.train) + len(data.test) == 1797
    for label in range(10):
        train, test = (int((s.labels == label).sum()) for s in (data.train, data.test))
        assert abs(test - (train + test) / 3) <= 0.5
    seen = {hashlib.sha256(image.numpy().tobytes()).digest() for image in data.train.images}
    assert not any(hashlib.sha256(image.numpy().tobytes()).digest() in seen for image in data.test.images)
    assert torch.equal(digits.__wrapped__(3).test.images, data.test.images)
    assert not torch.equal(digits(4).test.labels, data.test.labels)
    normal = data.normalised(data.train.images)
    assert abs(float(normal.mean())) < 1e-5 and abs(float(normal.std()) - 1) < 1e-3


@given(st.integers(0, 3), st.booleans(), st.integers(0, 2**31))
def test_moving_images_loses_and_adds_nothing_inside(margin: int, mirrored: bool, seed: int) -> None:
    """Against a loop over pixels; the shift `margin` alone is the identity."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 2, 5, 6, generator=draw)
    shifts = torch.randint(0, 2 * margin + 1, (3, 2), generator=draw)
    found = moved(images, shifts, torch.full((3,), mirrored), margin)
    for n in range(3):
        for i in range(5):
            for j in range(6):
                column = 5 - j if mirrored else j
                a, b = i + int(shifts[n, 0]) - margin, column + int(shifts[n, 1]) - margin
                inside = 0 <= a < 5 and 0 <= b < 6
                expected = images[n, :, a, b] if inside else torch.zeros(2)
                assert torch.equal(found[n, :, i, j], expected)
    same = moved(images, torch.full((3, 2), margin), None, margin)
    assert torch.equal(same, images)


def test_augmentation_does_not_depend_on_batches() -> None:
    """Sample n is moved alike in any batch; all shifts occur, about equally often."""
    data = digits(0)
    images = data.normalised(data.train.images[:600])
    augment = Augmentation(data, seed=5)
    whole = augment(images, 1000)
    parts = torch.cat([augment(images[a:b], 1000 + a) for a, b in ((0, 7), (7, 300), (300, 600))])
    assert torch.equal(whole, parts)
    assert not torch.equal(Augmentation(data, seed=6)(images, 1000), whole)
    still = float((whole == images).all(dim=(1, 2, 3)).float().mean())
    # one of nine, give or take four standard deviations; black borders hide some shifts
    assert 1 / 9 - 4 * math.sqrt(8 / 81 / 600) < still < 0.3

"""Nodal values as pictures: pixels of a square, bilinear between the mesh's nodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from kolmo.plotting import DENSITIES

#: pixels of a map, a direction
PIXELS = 145


def shown(axis: np.ndarray, nodal: np.ndarray, reach: float) -> np.ndarray:
    """Values at the centres of the pixels of [-reach, reach]^2, outside the box those of its edge.

    axis (n,): the nodes along either direction. nodal: (n, n), (n, n, 2) or (K, n, n, 2), of both classes and
    of K times.
    """
    pixels = reach * (2 * (np.arange(PIXELS) + 0.5) / PIXELS - 1)
    place = np.clip((pixels - axis[0]) / (axis[1] - axis[0]), 0, len(axis) - 1)
    cell = np.minimum(place.astype(int), len(axis) - 2)
    weights = np.zeros((PIXELS, len(axis)))
    weights[np.arange(PIXELS), cell] = 1 - (place - cell)
    weights[np.arange(PIXELS), cell + 1] = place - cell
    planes = nodal if nodal.ndim == 2 else np.moveaxis(nodal, -1, 0)
    found = weights @ planes @ weights.T
    return found if nodal.ndim == 2 else np.moveaxis(found, 0, -1)


def image(values: np.ndarray, reach: float) -> dict[str, list[Any]]:
    """The data of an image of pixels (x, y), row by row from below."""
    pixels = np.ascontiguousarray(values.T)
    pixels = pixels if pixels.dtype == np.uint32 else pixels.astype(np.float32)
    return {"image": [pixels], "corner": [-reach], "side": [2 * reach]}


def blended(density: np.ndarray, top: float) -> np.ndarray:
    """Both classes' densities (n, n, 2) as one picture, colours multiplied as if printed over each other.

    uint32 pixels, red in the lowest byte. Root scale, cut off at `top`.
    """
    scaled = np.sqrt(np.clip(density / top, 0, 1))
    layers = [DENSITIES[label](scaled[..., label])[..., :3] for label in (0, 1)]
    pixels = np.full((*density.shape[:2], 4), 255, dtype=np.uint8)
    pixels[..., :3] = np.rint(255 * layers[0] * layers[1])
    return pixels.view(np.uint32)[..., 0]

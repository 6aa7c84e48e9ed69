"""Student's interval for a mean over seeds."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit


def half_width(values: np.ndarray, confidence: float, sides: int = 2) -> np.ndarray:
    """Half the interval for the mean over the first axis, of one or two sides; nan of fewer than two."""
    count = len(values)
    if count < 2:
        return np.full(values.shape[1:], math.nan)
    quantile = stdtrit(count - 1, 1 - (1 - confidence) / sides)
    return np.asarray(quantile * values.std(axis=0, ddof=1) / math.sqrt(count))

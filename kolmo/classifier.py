"""A scikit-learn estimator: noise-injected residual networks, trained by control or by sampling."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from kolmo import control, noise, training
from kolmo.config import ControlSettings
from kolmo.data import Dataset
from kolmo.errors import InputError
from kolmo.loss import Logistic
from kolmo.network import ResidualNetwork
from kolmo.noise.base import Noise
from kolmo.penalty import StepPenalty, WeightDecay
from kolmo.problem import Problem
from kolmo.text import nearest

METHODS = ("control", "stochastic", "exact")
#: the equation's dimensions
_MOST = 3


class KolmogorovClassifier(ClassifierMixin, BaseEstimator):
    """Binary classification by a residual network trained with noise in its layers.

    Features are standardised; labels are any two values. method: 'control' (the backward Kolmogorov equation
    and L-BFGS) and 'exact' (the chain's exact recursion and L-BFGS) take at most three features; 'stochastic'
    (Adam on sampled passes) any number. components: train on so many leading principal components instead;
    None: on the features. noise: settings as in a configuration's [noise], such as
    {"kind": "stochastic_depth", "keep": 0.9}, or a Noise; None: Bernoulli dropout with keep probability 0.8.
    width, depth: hidden units and layers.
    weight_decay: times h |theta|^2. scale: of the logistic loss. cells, iterations: meshes of 'control' and
    'exact', coarse to fine (None: by the number of features), and L-BFGS iterations on each. steps, paths,
    learning_rate: of 'stochastic'.
    random_state: of initial weights and noise.

    Predictions are those of the network with its noise off, as networks with dropout are used.

    Attributes: classes_ (2,), n_features_in_, network_, problem_ (the training problem, with noise),
    preprocessing_ (features to network inputs), training_ (how L-BFGS went; None for 'stochastic').

    `fit` raises ValueError on data or settings that do not fit, InfeasibleError or AuditError where no mesh
    resolves the weights.
    """

    def __init__(
        self,
        method: str = "control",
        *,
        noise: dict[str, Any] | Noise | None = None,
        components: int | None = None,
        width: int = 16,
        depth: int = 20,
        weight_decay: float = 1e-2,
        scale: float = 4.0,
        cells: tuple[int, ...] | None = None,
        iterations: tuple[int, ...] = (60, 20),
        steps: int = 600,
        paths: int = 2,
        learning_rate: float = 0.02,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.method = method
        self.noise = noise
        self.components = components
        self.width = width
        self.depth = depth
        self.weight_decay = weight_decay
        self.scale = scale
        self.cells = cells
        self.iterations = iterations
        self.steps = steps
        self.paths = paths
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> KolmogorovClassifier:
        """Train on features X (M, n) and labels y (M,)."""
        if self.method not in METHODS:
            raise InputError(f"method: {self.method!r} is unknown{nearest(str(self.method), METHODS)}")
        found: tuple[np.ndarray, np.ndarray] = validate_data(self, X, y, dtype=np.float64)
        features, y = found
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) != 2:
            kind = type_of_target(y)
            raise ValueError(
                "Only binary classification is supported. The type of the target is "
                f"{kind}, with {len(self.classes_)} class(es)."
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.preprocessing_ = self._preprocessing(*features.shape)
        points = torch.from_numpy(np.ascontiguousarray(self.preprocessing_.fit_transform(features)))
        dim = points.shape[1]
        if dim > _MOST and self.method != "stochastic":
            raise InputError(
                f"method {self.method!r}: {dim} features, the equation takes at most {_MOST}; set "
                "components, or take method='stochastic'"
            )
        self.network_ = ResidualNetwork(dim, self.width, self.depth, seed=seed)
        data = Dataset(points, torch.from_numpy(labels.astype(np.int64)))
        self.problem_ = Problem(data, self.network_, self._noise(), Logistic(self.scale))
        penalties = (WeightDecay(self.weight_decay), StepPenalty())
        self.training_ = None
        if self.method == "stochastic":
            training.train(
                self.problem_,
                penalties,
                steps=self.steps,
                paths=self.paths,
                learning_rate=self.learning_rate,
                seed=seed,
            )
        else:
            self.training_ = control.train(
                self.problem_,
                penalties,
                cells=self._meshes(dim),
                iterations=self.iterations,
                estimator="pde" if self.method == "control" else "exact",
                seed=seed,
            )
        return self

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Log-odds of classes_[1] by the network without noise, shape (M,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        points = torch.from_numpy(np.ascontiguousarray(self.preprocessing_.transform(X)))
        with torch.no_grad():
            return np.asarray(self.scale * self.network_(points)[:, 0].numpy())

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probabilities of both classes, shape (M, 2)."""
        odds = self.decision_function(X)
        # by the smaller exponential, each accurate
        return np.stack([_sigmoid(-odds), _sigmoid(odds)], axis=1)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The more probable class of each row, shape (M,)."""
        check_is_fitted(self)
        return np.asarray(self.classes_[(self.decision_function(X) > 0).astype(int)])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _preprocessing(self, rows: int, features: int) -> Pipeline:
        wanted: Any = self.components
        if wanted is None:
            return make_pipeline(StandardScaler())
        if not isinstance(wanted, Integral) or int(wanted) < 1:
            raise InputError(f"components: {wanted!r} is not a positive integer")
        # what there is, where data have fewer features or rows
        return make_pipeline(StandardScaler(), PCA(min(int(wanted), rows, features)), StandardScaler())

    def _meshes(self, dim: int) -> list[int]:
        cells = [] if self.cells is None else [int(n) for n in self.cells]
        return ControlSettings(cells=cells, iterations=list(self.iterations)).meshes(dim)

    def _noise(self) -> Noise:
        if isinstance(self.noise, Noise):
            return self.noise
        return noise.from_settings(
            {"kind": "bernoulli_dropout", "keep": 0.8} if self.noise is None else self.noise
        )


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(torch.sigmoid(torch.from_numpy(x)).numpy())

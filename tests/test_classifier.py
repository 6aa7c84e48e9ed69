"""The scikit-learn estimator: its conventions, as scikit-learn itself checks them, and what it predicts."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler
from sklearn.utils.estimator_checks import check_estimator

import kolmo
from kolmo import KolmogorovClassifier
from kolmo.errors import InputError

SMALL: dict[str, Any] = {"width": 4, "depth": 4, "random_state": 0}
QUICK: dict[str, Any] = {"method": "stochastic", "steps": 60, **SMALL}


def moons(samples: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    found = kolmo.data.moons(samples, seed=seed)
    return found.points.numpy(), np.where(found.labels.numpy() == 1, "up", "down")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["stochastic", "control", "exact"])
def test_scikit_learns_own_checks_pass(method: str) -> None:
    """Data of many features go through their leading principal components, where a mesh has to be."""
    # some of the data have random labels: few layers and little decay end where the equation refuses
    settings: dict[str, Any] = {"width": 4, "depth": 16, "weight_decay": 0.03, "steps": 80}
    settings |= {"cells": (32,), "iterations": (40,)}
    components = None if method == "stochastic" else 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)  # pandas and the array API are optional
        found = check_estimator(
            KolmogorovClassifier(method, components=components, **settings), on_fail="raise"
        )
    passed = [check["check_name"] for check in found if check["status"] == "passed"]
    assert len(passed) > 40
    assert {c["check_name"] for c in found if c["status"] == "skipped"} <= {
        "check_array_api_input",
        "check_classifier_data_not_an_array",
    }


@pytest.mark.parametrize("method", ["control", "exact", "stochastic"])
def test_every_method_separates_the_moons(method: str) -> None:
    X, y = moons()
    given: dict[str, Any] = {"cells": (28,), "iterations": (30,), "steps": 200}
    found = KolmogorovClassifier(method, **given, **SMALL).fit(X, y)
    assert found.score(X, y) > 0.85
    assert list(found.classes_) == ["down", "up"]
    assert (found.training_ is None) == (method == "stochastic")
    odds, p = found.decision_function(X), found.predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-15)
    np.testing.assert_allclose(np.log(p[:, 1] / p[:, 0]), odds, atol=1e-6)
    np.testing.assert_array_equal(found.predict(X) == "up", p[:, 1] > 0.5)


def test_it_works_in_pipelines_and_searches() -> None:
    X, y = moons()
    pipeline = make_pipeline(RobustScaler(), KolmogorovClassifier(**QUICK))
    assert cross_val_score(pipeline, X, y, cv=2).mean() > 0.7
    search = GridSearchCV(KolmogorovClassifier(**QUICK), {"weight_decay": [1e-2, 10.0]}, cv=2)
    search.fit(X, y)
    assert search.best_params_ == {"weight_decay": 1e-2}


def test_the_same_state_gives_the_same_network_and_it_survives_pickling() -> None:
    X, y = moons()
    first, second = (KolmogorovClassifier(**QUICK).fit(X, y).decision_function(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    fitted = KolmogorovClassifier(**QUICK).fit(X, y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).decision_function(X), first)


def test_a_noise_is_given_by_its_settings_or_itself() -> None:
    X, y = moons(30)
    quick = {**QUICK, "steps": 2}
    for noise in ({"kind": "stochastic_depth", "keep": 0.9}, kolmo.noise.StochasticDepth(0.9)):
        fitted = KolmogorovClassifier(noise=noise, **quick).fit(X, y)
        assert fitted.problem_.noise.kind == "stochastic_depth"


def test_bad_settings_and_data_are_said_in_one_line() -> None:
    X, y = moons(30)
    four = np.hstack([X, X + 0.1 * np.random.default_rng(0).standard_normal(X.shape)])
    with pytest.raises(InputError, match=r"method: 'contol' is unknown; did you mean 'control'"):
        KolmogorovClassifier("contol").fit(X, y)
    with pytest.raises(InputError, match=r"method 'control': 4 features, the equation takes at most 3"):
        KolmogorovClassifier("control").fit(four, y)
    with pytest.raises(InputError, match=r"components: 0 is not a positive integer"):
        KolmogorovClassifier("control", components=0).fit(four, y)
    with pytest.raises(ValueError, match="Only binary classification"):
        KolmogorovClassifier(**QUICK).fit(X, np.arange(30) % 3)
    with pytest.raises(NotFittedError):
        KolmogorovClassifier().predict(X)

"""The client as a classifier of river and of scikit-learn, in the checkers of both; and `Learner` as one of river."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from effort import from_checks_on
from harness import Model
from river import base, checks, datasets, evaluate, linear_model, metrics, optim, preprocessing

import logstep
from logstep import Client, Learner, Spec


@pytest.fixture
def client(new_model: Callable[..., Model]) -> Iterator[Client]:
    model = new_model(rule="auto")
    with Client(f"http://127.0.0.1:{model.service.port}", model=model.name) as client:
        yield client


def client_of(model: Model) -> Client:
    return Client(f"http://127.0.0.1:{model.service.port}", model=model.name)


# -- river


def test_river_evaluates_it_at_the_end_of_a_pipeline_like_its_own(model: Model) -> None:
    def pipeline(last: Any) -> Any:
        return preprocessing.StandardScaler() | last

    own = linear_model.LogisticRegression(optim.SGD(0.01), intercept_lr=0.01)
    scores = [
        evaluate.progressive_val_score(datasets.Phishing().take(200), pipeline(last), metrics.LogLoss()).get()
        for last in (own, logstep.RiverClassifier(client_of(model)), Learner(Spec(learning_rate=0.01)))
    ]
    assert len(set(scores)) == 1
    assert model.state()["seq"] == 200


def test_river_asks_a_learner_for_labels_too() -> None:
    learner = Learner(Spec(scale="standard"))
    assert isinstance(learner, base.Classifier)
    score = evaluate.progressive_val_score(datasets.Phishing(), learner, metrics.Accuracy())
    assert score.get() > 0.8
    for p, label in ((learner.predict_proba_one(x)[True], learner.predict_one(x)) for x, _ in datasets.Phishing()):
        assert label is (p > 0.5)


def test_a_weight_of_river_is_the_events(client: Client) -> None:
    stream: Any = [({"a": 1.0}, True, {"w": 2.5})]
    evaluate.progressive_val_score(stream, logstep.RiverClassifier(client), metrics.Accuracy())
    assert client.learn({"a": 1.0}, 1, weight=2.5).seq == 2


SAYS_NOTHING_OF_RIVER = {
    "check_bounded_memory_growth": "the service has the state, and its memory is tested there",
    "check_clone_is_independent": "a clone is the same model, and what the check looks at has no state",
    "check_shuffle_features_no_impact": "it compares a model with its copy, and both are the same model",
}
"""Checks that cannot fail, and take long."""


@from_checks_on
def test_it_passes_rivers_checks(client: Client) -> None:
    classifier = logstep.RiverClassifier(client)
    seen = set()
    for check in checks.yield_checks(classifier):
        seen.add(check.__name__)
        if check.__name__ in SAYS_NOTHING_OF_RIVER:
            continue
        stream: dict[str, Any] = check.keywords if isinstance(check, functools.partial) else {}
        check(classifier.clone(), **{name: list(itertools.islice(events, 40)) for name, events in stream.items()})
    assert SAYS_NOTHING_OF_RIVER.keys() < seen
    assert len(seen) > 20


# -- scikit-learn


@pytest.fixture
def classifier(client: Client) -> Any:
    pytest.importorskip("sklearn")
    return logstep.SklearnClassifier(client)


X = np.random.default_rng(3).normal(size=(120, 3))
Y = (X[:, 0] + X[:, 1] > 0).astype(int)


def test_fit_wants_a_model_without_events_and_deletes_none_unless_it_is_told_to(classifier: Any) -> None:
    assert classifier.fit(X, Y).score(X, Y) > 0.8
    with pytest.raises(ValueError, match=r"has learned 120 events.*reset=True deletes them"):
        classifier.fit(X, Y)
    assert classifier.partial_fit(X, Y).client.model().seq == 240
    assert classifier.set_params(reset=True).fit(X, Y).client.model().seq == 120
    assert classifier.client.model().spec["rule"] == "auto"


def test_partial_fit_learns_more_also_in_another_process(classifier: Any, client: Client) -> None:
    labels = np.where(Y == 1, "yes", "no")
    with pytest.raises(ValueError, match="one class; partial_fit"):
        classifier.partial_fit(X[:1], labels[:1])
    assert client.model().seq == 0
    for start in range(0, 120, 40):
        classifier.partial_fit(X[start : start + 40], labels[start : start + 40], classes=["no", "yes"])
    assert client.model().seq == 120
    assert classifier.classes_.tolist() == ["no", "yes"]
    assert (classifier.predict(X) == labels).mean() > 0.8
    elsewhere = pickle.loads(pickle.dumps(classifier))
    assert elsewhere.predict_proba(X).tolist() == classifier.predict_proba(X).tolist()
    with pytest.raises(ValueError, match="classes other than"):
        classifier.partial_fit(X, Y)
    assert logstep.SklearnClassifier(client).predict(X[:2]).tolist() == (labels[:2] == "yes").astype(int).tolist()


def test_frames_sparse_matrices_and_weights_of_zero_are_learned_as_they_are(classifier: Any, client: Client) -> None:
    pd = pytest.importorskip("pandas")
    sparse = pytest.importorskip("scipy.sparse")
    frame = pd.DataFrame({"weight": X[:, 0], "country": ["FR", "DE"] * 60, "vip": X[:, 1] > 0})
    frame.loc[3, "weight"] = np.nan
    weights = np.arange(120) % 3
    classifier.fit(frame, Y, sample_weight=weights)
    assert client.model().seq == (weights > 0).sum()
    assert client.explain({"weight": 1.0, "country": "FR", "vip": True}).get("unknown", []) == []
    client.delete()
    client.create(rule="auto")
    classifier.fit(sparse.csr_matrix(np.where(X > 0, X, 0.0)), Y)
    assert client.model().state["features"] == 3


def test_scikit_learn_validates_it_across_folds_when_it_may_reset(client: Client) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    pipeline = pytest.importorskip("sklearn.pipeline")
    scaler = pytest.importorskip("sklearn.preprocessing").StandardScaler()
    model = pipeline.make_pipeline(scaler, logstep.SklearnClassifier(client, reset=True))
    assert selection.cross_val_score(model, X, Y, cv=3).mean() > 0.8
    assert client.model().seq == 80
    assert copy.deepcopy(model)[-1].client is client


SAYS_NOTHING_OF_SKLEARN = {
    f"check_sample_weight_equivalence_on_{kind}_data": (
        "a weight of 2 is one step of twice the gradient and not two steps. The check cannot see it: it compares two "
        "estimators, and both are the same model"
    )
    for kind in ("dense", "sparse")
}
"""Checks that cannot fail."""


@from_checks_on
@pytest.mark.filterwarnings("ignore")  # some checks ask for what scikit-learn itself will drop
def test_it_passes_scikit_learns_checks(client: Client) -> None:
    found = pytest.importorskip("sklearn.utils.estimator_checks")
    skipped, seen = set(), set()
    for estimator, check in found.estimator_checks_generator(logstep.SklearnClassifier(client, reset=True)):
        name = check.func.__name__
        seen.add(name)
        if name in SAYS_NOTHING_OF_SKLEARN:
            continue
        try:
            check(estimator)
        except found.SkipTest:  # what is to be set before Python starts
            skipped.add(name)
    assert SAYS_NOTHING_OF_SKLEARN.keys() < seen
    assert skipped <= {"check_array_api_input"}
    assert len(seen) > 40


@pytest.mark.parametrize("labels", [[0, 1, 2] * 40, ["a"] * 120])
def test_other_than_two_classes_are_refused_before_anything_is_learned(classifier: Any, labels: list[Any]) -> None:
    for learn in (classifier.fit, classifier.partial_fit):
        with pytest.raises(ValueError, match="class"):
            learn(X, labels)
    assert classifier.client.model().seq == 0


def test_a_default_client_is_one_for_all(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    monkeypatch.setattr(logstep, "_default_client", lambda: client)
    classifier = logstep.RiverClassifier()
    for x, y in itertools.islice(datasets.Phishing(), 3):
        classifier.learn_one(x, y)
    assert client.model().seq == 3

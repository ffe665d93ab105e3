"""Services for the tests that need no own, and how much the tests do."""

from __future__ import annotations

import itertools
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from effort import EFFORT
from forked import end, started

pytest.register_assert_rewrite("harness", "processes")

from harness import Model, NewModel, Service, Start, Starter  # noqa: E402 - pytest must know of it before

if TYPE_CHECKING:
    from broker import Cluster, Mock
    from replicas import Nodes

# Doctests are looked for in every file, and to import these takes seconds.
collect_ignore = ["benchmarks", "golden", "schemathesis_hooks.py"]

LONG_SECONDS = 3 * 3600.0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto` is half as many again as there are processors: tests wait for disks and services two fifths of the
    time."""
    processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return processors + processors // 2


WITH_BROKERS = ("test_chaos.py", "test_replica.py", "test_import.py", "test_kafka.py", "test_topic.py")
"""Files whose tests take the fixture `cluster`."""
FIRST = (
    *WITH_BROKERS,
    *("test_page_browser.py", "test_replay.py", "test_faults.py", "test_one_request.py", "test_cli.py", "test_auto.py"),
    *("test_installed.py", "test_one_body.py", "test_retention.py", "test_power_cut.py", "test_fuzz_api.py"),
    *("test_load.py", "test_readme.py", "test_model_of_the_service.py", "test_bit_flips.py", "test_kill.py"),
)
"""The files that take longest, in this order: what begins last would end last, on a single processor."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, but that one process has all files with brokers: each that has one starts a cluster."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # it has no types

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # the same
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "with brokers" if Path(file).name in WITH_BROKERS else file

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The order, and the efforts: see effort.py."""
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))
    if EFFORT == "long":
        for item in items:
            item.add_marker(pytest.mark.timeout(LONG_SECONDS), append=False)  # before a test's own
    if EFFORT != "quick":
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: set[pytest.Item] = set()
    for name, all_of_them in cases.items():
        mark = all_of_them[0].get_closest_marker("few")
        assert mark is not None
        too_many = max(0, len(all_of_them) - mark.args[0])
        left_out.update(random.Random(name).sample(all_of_them, too_many))
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))


@pytest.fixture(autouse=True)
def what_a_test_started_ends_with_it() -> Iterator[None]:
    """Also if it failed, or took too long. What fixtures of a module or session started is there before."""
    before = started()
    yield
    for pid in started() - before:
        end(pid)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a service: `start("--window", "10")`; `start(folder=...)` for a folder that is there already."""
    starter = Starter(tmp_path)
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests that need no own; each uses its own model."""
    starter = Starter(tmp_path_factory.mktemp("shared"))
    yield starter()
    starter.close()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service with small limits: bodies of 4,096 bytes, lines of 2,048, three models."""
    starter = Starter(tmp_path_factory.mktemp("small"))
    yield starter("--max-body-bytes", "4096", "--max-line-bytes", "2048", "--max-models", "3")
    starter.close()


_clusters: list[Cluster] = []
"""The one that was started."""


@pytest.fixture(scope="session")
def brokers_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    from broker import brokers

    with brokers(tmp_path_factory.mktemp("kafka") / "cluster", 3) as found:
        _clusters.append(found)
        yield found


@pytest.fixture
def cluster(brokers_of_the_session: Cluster) -> Iterator[Cluster]:
    """Three real Kafka brokers, which run at the end of each test again. Skips where there is no Java or no broker."""
    brokers_of_the_session.mend()
    yield brokers_of_the_session
    brokers_of_the_session.mend()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Brokers that do nothing take half a processor, so they end with the files that need them."""
    if nextitem is None or nextitem.path.name not in WITH_BROKERS:
        for one in _clusters:
            one.end()


@pytest.fixture
def nodes(cluster: Cluster, start: Start) -> Nodes:
    """Nodes of a topic of the test's own. It has one copy: three take brokers two seconds of processor time."""
    from replicas import Nodes, make_topic

    name = f"nodes-{next(_names)}"
    make_topic(cluster, name, copies=1)
    return Nodes(cluster, name, start)


@pytest.fixture
def mock_cluster() -> Iterator[Mock]:
    """Three brokers of librdkafka's own mock, in this process."""
    from broker import mock

    with mock(3) as found:
        found.have_controller()
        yield found


_names = itertools.count(1)


@pytest.fixture
def new_model(shared: Service) -> NewModel:
    """Make a model with a spec (the default one if none is given) on the shared service, under a name of its own."""

    def create(**spec: Any) -> Model:
        model = shared.model(f"model-{next(_names)}")
        created = model.create(spec)
        assert created.status_code == 201, created.text
        return model

    return create


@pytest.fixture
def model(new_model: NewModel) -> Model:
    """A new model with the default spec, on the shared service."""
    return new_model()

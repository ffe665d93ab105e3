"""schemathesis asks a running service all that its OpenAPI document allows, and much that it does not: no 5xx, no
status that is not documented, no reply that breaks its schema, nothing valid refused and nothing invalid taken, and
nothing answered without a token."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from effort import amount, from_checks_on
from harness import Service, Start

TOKEN = secrets.token_hex(32)
TESTS = Path(__file__).resolve().parent
# A spec's fields have bounds and depend on each other in ways that a schema does not say, and so do times; lines and
# rows of a stream are not in its schema at all.
CONFIG = """
hooks = "schemathesis_hooks"

[[operations]]
include-operation-id = "put_model"
checks.positive_data_acceptance.expected-statuses = ["2xx", 409, 422]

[[operations]]
include-operation-id = "series"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 422]

[[operations]]
include-operation-id-regex = "^(learn|predict)(_model)?$"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404, 409, 413, 422]
checks.negative_data_rejection.enabled = false
"""


def fuzz(service: Service, folder: Path, *options: str, seconds: float) -> str:
    """Run schemathesis on a service; what it said."""
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [str(Path(sys.executable).with_name("st")), "--config-file", str(config), "run"]
    command += [f"http://127.0.0.1:{service.port}/openapi.json", "--checks", "all", "--no-color"]
    command += ["--header", f"Authorization: Bearer {TOKEN}"]
    phases = amount(quick="fuzzing", checks="coverage,fuzzing,stateful", long="coverage,fuzzing,stateful")
    command += ["--phases", phases]  # the examples are tried by tests/test_openapi.py
    done = subprocess.run(
        [*command, "--request-timeout", "60", *options],
        cwd=folder,  # it keeps examples there
        env=os.environ | {"PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def guarded(start: Start) -> Service:
    # A large `min_seq` waits as long as a node may be behind.
    service = start("--max-models", "50", "--max-lag", "0.05", env={"LOGSTEP_TOKEN": TOKEN})
    service.http.headers["authorization"] = f"Bearer {TOKEN}"
    return service


def check_afterwards(service: Service) -> None:
    """It still learns, and says nothing of a mistake."""
    assert service.get("/readyz") == {"status": "ready"}
    model = service.model("after-all-that")
    assert model.create({}).status_code == 201
    assert model.learn({"x": {"a": 1}, "y": 1}).json()["seq"] == 1
    model.assert_equal_to_river()
    assert '"level":"error"' not in service.log


SLOW = "(crosscheck|stream)$"
# One worker: CPython 3.11 may fail where two threads parse source at once, as Hypothesis does to show a strategy.
SHORT = ("--max-examples", "12", "--generation-deterministic", "--workers", "1")


@from_checks_on
def test_whatever_is_asked_is_answered_as_documented(start: Start, tmp_path: Path) -> None:
    service = guarded(start)
    said = fuzz(
        service,
        tmp_path,
        *amount(quick=SHORT, checks=SHORT, long=("--max-examples", "300", "--workers", "1")),
        # A cross-check takes a second or two, so it is in the long form; streams of events do not end.
        *("--exclude-path-regex", amount(quick=SLOW, checks=SLOW, long="stream$")),
        seconds=amount(quick=200, checks=200, long=3_600),
    )
    cases = re.search(r"(\d+) generated", said)
    assert cases is not None
    assert int(cases[1]) > amount(quick=500, checks=500, long=10_000)
    check_afterwards(service)


@pytest.mark.parametrize("operation", ["learn_model", "predict_model", "get_model", "delete_model", "get_weights"])
def test_the_document_links_what_can_be_asked_of_a_model_that_was_made(shared: Service, operation: str) -> None:
    """create -> learn -> predict -> get -> delete, each by a link from the one before."""
    document = shared.get("/openapi.json")
    linked = {
        link["operationId"]
        for operations in document["paths"].values()
        for found in operations.values()
        for response in found["responses"].values()
        for link in response.get("links", {}).values()
    }
    assert operation in linked
    known = {found["operationId"] for operations in document["paths"].values() for found in operations.values()}
    assert linked <= known

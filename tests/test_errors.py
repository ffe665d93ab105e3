"""Errors: their fields, their messages, and the problem documents that they become."""

from __future__ import annotations

import string
from dataclasses import fields, replace

import pytest

from service import errors, failures, problem

KINDS = [
    kind
    for module in (errors, failures)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, errors.LogstepError)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_message_names_only_fields_that_the_error_has(kind: type[errors.LogstepError]) -> None:
    named = {name for _, name, _, _ in string.Formatter().parse(kind.__doc__ or "") if name}
    assert named <= {field.name for field in fields(kind)}


def test_errors_without_a_message_of_their_own_have_that_of_their_base() -> None:
    assert str(errors.InvalidEvent(field="y", reason="must be 0 or 1")) == "y: must be 0 or 1."
    damaged = errors.StorageDamaged(reason="page 3")
    assert (damaged.status, damaged.slug()) == (503, "storage-damaged")


def test_an_unknown_field_is_a_mistake() -> None:
    with pytest.raises(TypeError):
        errors.QueueFull(waiting=1, limit=1, waits=1)  # type: ignore[call-arg]  # so does mypy say


def test_a_problem_has_the_members_that_are_known() -> None:
    conflict = errors.IdConflict(field="id", id="a", reason="waits for its label with another x")
    problem = conflict.problem("r-1")
    assert problem == {
        "type": "urn:logstep:id-conflict",
        "title": "Id conflict",
        "status": 409,
        "detail": "id: the id 'a' waits for its label with another x.",
        "request_id": "r-1",
        "field": "id",
    }
    placed = replace(conflict, line=7, seq=3)
    assert placed.problem("r-1") == {**problem, "line": 7, "seq": 3}
    assert conflict.line is None, "other requests may share it"


def test_a_stream_that_learned_nothing_has_no_last_seq_and_says_so() -> None:
    problem = errors.RequestTimeout(seconds=30, learned=0, duplicates=0).problem("r-1")
    assert (problem["learned"], problem["duplicates"], problem["last_seq"]) == (0, 0, None)


def test_headers_tell_what_a_client_may_do() -> None:
    assert errors.TooFast(rate=2.5, retry_after=4).headers == (("retry-after", "4"),)
    assert errors.MethodNotAllowed(path="/", method="PUT", allow="GET").headers == (("allow", "GET"),)
    assert dict(errors.Unauthorized(sent=True).headers)["www-authenticate"].endswith('error="invalid_token"')
    assert errors.QueueFull(waiting=1, limit=1).headers == problem.SOON

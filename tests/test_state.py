"""The engine's states: each cell of the table, and what each state lets in."""

from __future__ import annotations

import asyncio

import pytest

from service import errors
from service.learning.state import EngineState, Lifecycle, On, after

TABLE = """
             start       recovered  drain     stop     fail
starting     recovering  starting   starting  stopped  failed
recovering   recovering  ready      recovering stopped failed
ready        ready       ready      draining  stopped  failed
draining     draining    draining   draining  stopped  failed
stopped      stopped     stopped    stopped   stopped  failed
failed       failed      failed     failed    failed   failed
"""
CELLS = [
    (line.split()[0], on, then)
    for line in TABLE.splitlines()[2:]
    for on, then in zip(TABLE.split()[:5], line.split()[1:], strict=True)
]


@pytest.mark.parametrize(("state", "on", "then"), CELLS)
def test_what_follows_what(state: str, on: str, then: str) -> None:
    assert after(EngineState[state.upper()], On[on.upper()]) is EngineState[then.upper()]


def test_every_cell_is_there() -> None:
    assert len(set(CELLS)) == len(EngineState) * len(On)


ALLOWS = """
            recovering accepts stopping ready over
starting    yes        no      no       no    no
recovering  yes        no      no       no    no
ready       no         yes     no       yes   no
draining    no         yes     yes      no    no
stopped     no         no      yes      no    yes
failed      no         no      yes      no    yes
"""


@pytest.mark.parametrize("line", ALLOWS.splitlines()[2:])
def test_what_each_state_allows(line: str) -> None:
    word, *allowed = line.split()
    (state,) = [state for state in EngineState if state.value == word]
    assert f"{state}" == state.value == word  # as /readyz, the metrics and the live streams tell it
    assert [getattr(state, what) for what in ALLOWS.split()[:5]] == [one == "yes" for one in allowed]


def lifecycle(*moves: On) -> Lifecycle:
    found = Lifecycle()
    for on in moves:
        found.move(on)
    return found


@pytest.mark.parametrize(
    ("moves", "told"),
    [
        ((), "recovering: replaying its log"),
        ((On.START,), "recovering: replaying its log"),
        ((On.START, On.RECOVERED), None),
        ((On.START, On.RECOVERED, On.DRAIN), None),
        ((On.START, On.STOP), "stopping"),
        ((On.START, On.RECOVERED, On.STOP), "stopping"),
    ],
)
def test_what_keeps_a_request_out_is_told(moves: tuple[On, ...], told: str | None) -> None:
    found = lifecycle(*moves)
    if told is None:
        found.check_accepts()
        return
    with pytest.raises(errors.NotReady) as raised:
        found.check_accepts()
    assert raised.value.state == told


def test_the_first_failure_is_told_to_everybody_after_it() -> None:
    found, first = lifecycle(On.START, On.RECOVERED), errors.StorageFailed(reason="the first")
    assert found.fail(first)
    assert not found.fail(errors.StorageFailed(reason="the second"))
    found.move(On.STOP)
    assert found.state is EngineState.FAILED
    with pytest.raises(errors.StorageFailed, match="the first"):
        found.check_accepts()


def test_a_failure_while_it_stops_is_a_failure() -> None:
    found = lifecycle(On.START, On.RECOVERED, On.STOP)
    assert found.fail(errors.DiskFull())
    assert found.state is EngineState.FAILED


def test_streams_end_when_it_is_set() -> None:
    async def story() -> None:
        found = Lifecycle()
        found.check_streams()
        found.streams_end.set()
        with pytest.raises(errors.NotReady, match="streams end"):
            found.check_streams()

    asyncio.run(story())

"""Ids of events move from commits to runs, and from runs to larger ones. Each is always found, and in one place."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk import Disk, lay, needs_strace, recorded, tracing
from effort import amount, examples, from_checks_on
from hypothesis import given
from hypothesis import strategies as st
from moving_ids import commit, id_of, make_small, move
from processes import copied, ids_in, running_engine

from core import Spec
from service.commands.backup import backup
from service.commands.inspect import examine
from service.events import MAX_ID, Event
from service.learning.request import Duplicate, Learned
from service.storage import event_ids, id_filter, id_pieces, indexing, merging
from service.storage.event_ids import Found
from service.storage.forgotten import Forgotten
from service.storage.id_filter import Filter
from service.storage.id_pieces import EventIds, Piece
from service.storage.ids import IdsTakenError
from service.storage.positions import NOWHERE
from service.storage.store import Store
from service.texts import Texts

HERE = Path(__file__).parent


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some dozens of ids are enough for every kind of move."""
    kept = {module: dict(vars(module)) for module in (id_filter, id_pieces, event_ids, indexing, merging)}
    make_small()
    for module, before in kept.items():
        for name, now in list(vars(module).items()):
            if name in before and now is not before[name]:
                setattr(module, name, before[name])
                monkeypatch.setattr(module, name, now)


# -- against a dict


def mixed(ids: Texts) -> Any:
    return HASHES(ids)


HASHES = id_pieces.hashes_of
COLLIDING: dict[str, Callable[[Texts], Any]] = {
    "hashes": mixed,
    "three hashes": lambda ids: mixed(ids) % 3,
    "one hash": lambda ids: np.full(len(ids), -5),
    "the least and the largest": lambda ids: np.where(mixed(ids) % 2, -(2**63), 2**63 - 1),
}
"""How ids may be hashed: the full id decides, also where all collide."""

ID = st.sampled_from([*(f"id-{i}" for i in range(40)), "", "é🦆", "x" * 256, "a", "aa", "é" * 256])
STEP = st.one_of(
    st.tuples(st.just("learn"), st.lists(ID, min_size=1, max_size=12, unique=True)),
    st.tuples(st.sampled_from(["flush", "reopen", "drop", "forget", "fail"]), st.integers(0, 60)),
    st.tuples(st.just("merge"), st.integers(1, 4)),
)


class Twin:
    """A store and a dict that must say the same of two models' ids."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder)
        self.models = [self.store.create_model(name, Spec().as_dict()).key for name in "ab"]
        self.known: dict[tuple[int, str], Found] = {}
        self.seq = 0

    def write(self, model: int, ids: list[str]) -> dict[str, Found]:
        seqs = range(self.seq + 1, self.seq + 1 + len(ids))
        found = {id_: Found(seq, seq * 5**20, -seq) for id_, seq in zip(ids, seqs, strict=True)}
        with self.store.commits.transaction():
            self.store.commits.ids.learn(model, EventIds.of((id_, *found[id_]) for id_ in ids))
        return found

    def learn(self, model: int, ids: list[str]) -> None:
        taken = any((model, id_) in self.known for id_ in ids)
        try:
            found = self.write(model, ids)
        except IdsTakenError:
            assert taken
            return
        assert not taken
        self.known.update(((model, id_), what) for id_, what in found.items())
        self.seq += len(ids)

    def fail(self, model: int, count: int) -> None:
        def transaction() -> None:
            with self.store.commits.transaction():
                self.store.commits.ids.learn(model, EventIds.of([(f"never-{count}", 1, 1, 1)]))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            transaction()

    def flush(self, _: int, __: int) -> None:
        if any(has.new for has in self.store.commits.ids.runs.models.values()):
            self.store.merging.flush()

    def merge(self, _: int, count: int) -> None:
        for _ in range(count):
            self.store.merging.merge()

    def drop(self, model: int, count: int) -> None:
        up_to = self.seq - count
        for _ in self.store.merging.drop(model, up_to):
            pass
        self.known = {key: of for key, of in self.known.items() if key[0] != model or of.seq > up_to}

    def forget(self, model: int, count: int) -> None:
        self.store.trimming.forget(model, Forgotten(ids=self.seq - count), NOWHERE)
        self.known = {key: of for key, of in self.known.items() if key[0] != model or of.seq > self.seq - count}

    def reopen(self, _: int, __: int) -> None:
        self.store.close()
        self.store = Store(self.folder)

    def check(self) -> None:
        wanted = [*(f"id-{i}" for i in range(40)), "", "é🦆", "x" * 256, "a", "aa", "é" * 256, "never-1", "id-7"]
        for model in self.models:
            found = self.store.commits.ids.runs.find(model, wanted)
            assert found == {id_: self.known[model, id_] for id_ in wanted if (model, id_) in self.known}
        self.store.log.check_ids()

    def check_file(self) -> None:
        for model, forgotten in self.store.log.forgotten.items():
            for _ in self.store.merging.drop(model, forgotten.ids):
                self.check()
        there = ids_in(self.folder)
        assert {key: Found(seq, mark, label) for key, (seq, mark, _, label) in there.items()} == self.known
        for model in self.models:
            seqs = [of.seq for key, of in self.known.items() if key[0] == model]
            assert self.store.log.ids(model) == (len(seqs), max(seqs, default=0))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("how", COLLIDING)
@examples(10)
@given(steps=st.lists(st.tuples(st.integers(0, 1), STEP), max_size=40))
def test_ids_are_found_whatever_moved_and_however_they_are_hashed(
    tmp_path_factory: pytest.TempPathFactory, how: str, steps: list[tuple[int, tuple[str, Any]]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_pieces, "hashes_of", COLLIDING[how])
        twin = Twin(tmp_path_factory.mktemp("twin"))
        for model, (what, argument) in steps:
            getattr(twin, what)(twin.models[model], argument)
            twin.check()
        twin.check_file()
        twin.store.close()


@given(st.lists(st.text(max_size=20), unique=True, min_size=1), st.integers(-(2**63), 2**63 - 1))
def test_a_piece_reads_back(ids: list[str], number: int) -> None:
    rows = [(id_, i, number, ~number) for i, id_ in enumerate(ids)]
    piece = Piece.of(EventIds.of(rows))
    again = Piece.decode(len(ids), piece.encode())
    assert again is not None
    assert list(zip(again.ids, *again.numbers[1:].tolist(), strict=True)) == rows
    assert again.checksum(1) == piece.checksum(1) != piece.checksum(2)
    assert again.sorted().checksum(1) == piece.checksum(1)


@given(st.binary(max_size=200), st.integers(-3, 10))
def test_bytes_that_are_no_piece_are_none(payload: bytes, ids: int) -> None:
    piece = Piece.decode(ids, payload)
    if piece is not None:
        again = Piece.decode(ids, piece.encode())
        assert again is not None
        assert (list(again.ids), again.numbers.tolist()) == (list(piece.ids), piece.numbers.tolist())
        assert len(piece) == ids


ALIKE = st.tuples(st.text(max_size=8), st.sampled_from(["0123456789", "0123456789abcdef-", "aé🦆"])).flatmap(
    lambda of: st.lists(st.text(of[1], max_size=12).map(lambda end: of[0] + end), unique=True, min_size=1, max_size=50)
)
"""Ids that begin alike, of few symbols or of many."""


@given(ALIKE, st.integers(1, 40), st.integers(-(2**63), 2**63 - 1), st.data())
def test_a_flipped_bit_of_a_piece_makes_it_unreadable_or_changes_the_checksum(
    ids: list[str], labels: int, number: int, data: st.DataObject
) -> None:
    rows = [(id_, number ^ i, ~number ^ i << 40, number ^ i % labels) for i, id_ in enumerate(ids)]
    piece = Piece.of(EventIds.of(rows))
    payload = bytearray(piece.encode())
    again = Piece.decode(len(ids), bytes(payload))
    assert again is not None
    assert list(zip(again.ids, *again.numbers[1:].tolist(), strict=True)) == rows
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    flipped = Piece.decode(len(ids), bytes(payload))
    assert flipped is None or flipped.checksum(1) != piece.checksum(1)


@given(ALIKE, st.integers(1, 9))
def test_pieces_that_are_packed_at_once_are_those_that_are_packed_one_by_one(ids: list[str], size: int) -> None:
    piece = Piece.of(EventIds.of((id_, i, i, i % 3) for i, id_ in enumerate(ids))).sorted()
    cuts = [*range(0, len(ids), size), len(ids)]
    assert piece.encode_cut(cuts) == [piece.part(*some).encode() for some in pairwise(cuts)]


@given(ALIKE, st.integers(-1, 3), st.data())
def test_changed_bytes_of_a_piece_are_none_or_a_piece(ids: list[str], more: int, data: st.DataObject) -> None:
    """Of every length: kernels do not check where they read."""
    payload = Piece.of(EventIds.of((id_, i, i, i % 3) for i, id_ in enumerate(ids))).encode()
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(payload))] * 2)))
    changed = payload[:start] + data.draw(st.sampled_from([b"", b"\xff", b"\0" * 9, b"\xff" * 9])) + payload[stop:]
    count = max(0, len(ids) + more)
    piece = Piece.decode(count, changed)
    assert piece is None or len(piece) == len(list(piece.ids)) == count


@pytest.mark.parametrize("count", [1, 2, 17, 600])
def test_the_longest_ids_read_back(count: int) -> None:
    rows = [("🦆" * 252 + chr(0x10FFFF - i) + f"{i:03}", -i, i << 40, i) for i in range(count)]
    assert len(rows[0][0]) == MAX_ID
    piece = Piece.of(EventIds.of(rows)).sorted()
    cuts = piece.cuts()
    for payload, (start, stop) in zip(piece.encode_cut(cuts), pairwise(cuts), strict=True):
        again = Piece.decode(stop - start, payload)
        assert again is not None
        assert list(again.ids) == list(piece.ids[start:stop])


def test_a_look_up_of_what_was_just_committed_reads_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Store(tmp_path)) as store:
        model = store.create_model("m", {}).key
        assert commit(store, model, 1, 600)
        store.merging.flush()
        for first, count in ((601, 1), (602, 600)):  # a row of few and one of many
            assert commit(store, model, first, count)
        runs, wanted = store.commits.ids.runs, [id_of(seq) for seq in (1, 601, 602, 1_201, 1_202)]
        assert {of.seq for of in runs.find(model, wanted).values()} == {1, 601, 602, 1_201}
        monkeypatch.setattr(runs, "_db", None)
        assert {of.seq for of in runs.find(model, wanted[1:4]).values()} == {601, 602, 1_201}


def test_ids_of_one_source_take_less_than_their_text() -> None:
    numbers = random.Random(7)
    rows, uuids, all_kinds = (
        [f"clicks.csv:0123abcd:{i}" for i in range(100_000, 100_500)],
        [str(uuid.UUID(int=numbers.getrandbits(128), version=4)) for _ in range(500)],
        ["".join(map(chr, numbers.choices(range(32, 1_000), k=20))) for _ in range(500)],
    )
    sizes = []
    for ids in (rows, uuids, all_kinds):
        piece = Piece.of(EventIds.of((id_, i, numbers.getrandbits(63), i % 2) for i, id_ in enumerate(ids)))
        sizes.append((len(piece.encode()) - 8 * len(ids)) / len(piece.ids.text))  # a fingerprint is as it is
    assert sizes[0] < 0.25
    assert sizes[1] < 0.55
    assert sizes[2] < 1.15


def test_the_filter_never_calls_a_known_id_new_and_rarely_a_new_one_known() -> None:
    some, others = (
        Piece.of(EventIds.of((id_of(seq), seq, 0, 0) for seq in range(first, first + 100_000))) for first in (1, 10**6)
    )
    filter_ = Filter.for_ids(50_000)
    filter_.add(1, some)
    assert filter_.may_know(1, some).all()
    assert filter_.may_know(1, others).sum() < 30
    assert filter_.may_know(2, some).sum() < 30  # another model's


# -- in the middle of a merge


def filled(folder: Path, events: int = 400) -> Store:
    """A store whose ids are in runs that wait to be merged, in commits, and in a run that is half merged."""
    folder.mkdir()
    store = Store(folder)
    model = store.create_model("m", Spec().as_dict()).key
    for first in range(1, events, 10):
        assert commit(store, model, first, 10)
        if store.merging.flush_due:
            store.merging.flush()
    while store.commits.ids.runs.filter_due:
        store.merging.merge()
    assert store.merging.merge_due
    store.merging.merge()
    assert store.merging.merge_due
    return store


@pytest.mark.usefixtures("small")
def test_a_merge_changes_no_checksum_and_can_be_inspected_and_copied_at_each_step(tmp_path: Path) -> None:
    with closing(filled(tmp_path / "data")) as store:
        checksum, before, steps = store.commits.ids.checksum, ids_in(tmp_path / "data"), 0
        assert len(before) == 400
        while store.merging.merge_due:
            store.merging.merge()
            steps += 1
            assert store.commits.ids.checksum == checksum
            assert ids_in(tmp_path / "data") == before
            if steps % amount(quick=20, checks=8, long=1) == 1:
                found = examine(tmp_path / "data")
                assert (found.wrong, found.models[0].ids) == ([], 400)
                assert backup(tmp_path / "data", tmp_path / f"copy-{steps}") == 0
                assert ids_in(tmp_path / f"copy-{steps}") == before
                goes_on(tmp_path / f"copy-{steps}", 400)
        assert steps > 5
        assert len(store.commits.ids.runs.models[1].runs) < merging.FAN_IN


def goes_on(folder: Path, events: int) -> None:
    """A folder as it was left has these events' ids: each is a duplicate, the next is new, and merges go on."""
    with closing(Store(folder)) as store:
        model = store.log.models()[0].key
        store.log.check_ids()
        for known in range(1, events + 1, 7):
            assert not commit(store, model, events + 1, 1, known)
        assert commit(store, model, events + 1, 1)
        while move(store):
            assert not commit(store, model, events + 2, 1, events)
        store.log.check_ids()
    assert len(ids_in(folder)) == events + 1


@pytest.mark.usefixtures("small")
def test_what_a_kill_leaves_after_any_step_is_whole(tmp_path: Path) -> None:
    with closing(filled(tmp_path / "data")) as store:
        step = 0
        while store.merging.merge_due:
            if step % amount(quick=12, checks=6, long=1) == 0:
                goes_on(copied(tmp_path / "data", tmp_path / f"left-{step}"), 400)
            store.merging.merge()
            step += 1


@pytest.mark.usefixtures("small")
def test_a_model_that_is_deleted_in_the_middle_of_a_merge_leaves_nothing(tmp_path: Path) -> None:
    with closing(filled(tmp_path / "data")) as store:
        store.delete_model(store.log.models()[0])
        while store.trimming.purge():
            if store.merging.merge_due:
                store.merging.merge()
            store.log.check_ids()
        assert store.commits.ids.checksum == 0
        assert not move(store)
    assert ids_in(tmp_path / "data") == {}


@pytest.mark.usefixtures("small")
def test_ids_that_need_not_stay_go_in_the_middle_of_a_merge(tmp_path: Path) -> None:
    with closing(filled(tmp_path / "data")) as store:
        model = store.log.models()[0].key
        for _ in store.merging.drop(model, 250):
            move(store)
            store.log.check_ids()
        assert {seq for seq, *_ in ids_in(tmp_path / "data").values()} == set(range(251, 401))
        assert commit(store, model, 401, 1)
        assert not commit(store, model, 402, 1, 300)
        assert commit(store, model, 402, 1, 200)


@pytest.mark.usefixtures("small")
def test_a_damaged_id_costs_only_itself_and_merges_tell_of_it(tmp_path: Path) -> None:
    """Its hash is another one then, and would stand between others' in a merge."""
    filled(tmp_path / "data").close()
    with closing(Store(tmp_path / "data")) as store:
        db = store.log.db.connection
        for rowid, count, payload in db.execute("SELECT rowid, ids, payload FROM event_ids").fetchall():
            piece = Piece.decode(count, payload)
            assert piece is not None
            ids = [id_[::-1] if id_ == id_of(1) else id_ for id_ in piece.ids]
            changed = replace(piece, ids=Texts.of(ids)).encode()
            db.execute("UPDATE event_ids SET payload = ? WHERE rowid = ?", (changed, rowid))
    with closing(Store(tmp_path / "data")) as store:
        model = store.log.models()[0].key
        while move(store):
            pass
        found = store.commits.ids.runs.find(model, [id_of(seq) for seq in range(1, 401)])
        assert found.keys() == {id_of(seq) for seq in range(2, 401)}
        assert examine(tmp_path / "data").wrong == ["the table of ids has a wrong checksum"]
        store.accept_ids()
        assert examine(tmp_path / "data").wrong == []
        assert len(ids_in(tmp_path / "data")) == 399


# -- kills and power cuts


def process(folder: Path, seed: int, *before: str) -> subprocess.Popen[str]:
    command = [*before, sys.executable, str(HERE / "moving_ids.py"), str(folder), str(seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def killed_after(running: subprocess.Popen[str], commits: int) -> int:
    """Kill a process some commits later; how many events it has said are committed."""
    assert running.stdout is not None
    pid, last = int(running.stdout.readline()), 0
    for line, _ in zip(running.stdout, range(commits), strict=False):
        last = int(line.split()[1])
    os.kill(pid, signal.SIGKILL)
    for line in running.stdout:
        if line.endswith("\n"):
            last = int(line.split()[1])
    running.stdout.close()
    running.wait()
    return last


def assert_all_there(folder: Path, acknowledged: int) -> int:
    """All acknowledged ids are there once, and those of the events that are there; how many that are."""
    with closing(Store(folder)) as store:
        model = store.log.models()[0].key if store.log.models() else 0
        last = store.log.last_seq(model)
        assert last >= acknowledged
        store.log.check_ids()
        assert store.log.index.wrong() == []
        assert sum(len(batch) for batch in store.log.batches(model)) == last
        seqs = {id_of(seq): Found(seq, seq * 7**15, -seq) for seq in range(1, last + 1)}
        assert store.commits.ids.runs.find(model, [*seqs, id_of(last + 1)]) == seqs
    assert {id_ for _, id_ in ids_in(folder)} == seqs.keys()
    return last


@pytest.mark.usefixtures("small")
def test_after_kills_in_the_middle_of_moves_every_id_is_there_once(tmp_path: Path) -> None:
    folder, numbers, last = tmp_path / "data", random.Random(1), 0
    folder.mkdir()
    for run in range(amount(quick=1, checks=3, long=40)):
        last = assert_all_there(folder, max(last, killed_after(process(folder, run), numbers.randrange(20, 120))))
    assert examine(folder).wrong == []


@from_checks_on
@needs_strace()
@pytest.mark.usefixtures("small")
def test_after_a_power_cut_in_the_middle_of_moves_every_id_is_there_once(tmp_path: Path) -> None:
    folder, numbers = tmp_path / "data", random.Random(2)
    folder.mkdir()
    killed_after(process(folder, 7, *tracing(tmp_path / "trace")), 120)
    calls = recorded(tmp_path / "trace", folder)
    cuts = set(numbers.sample(range(len(calls)), amount(quick=0, checks=40, long=400)))
    disk, acknowledged, moved = Disk(), 0, 0
    for at, call in enumerate(calls):
        if at in cuts and "log.db" in disk.synced:
            how = numbers.choice(("nothing", "all", "first", "some", "torn"))
            state = lay(disk.state(how, numbers), tmp_path / f"cut-{at}")
            assert_all_there(state, acknowledged)
            with closing(Store(state)) as store:
                moved += any(len(has.runs) > 1 for has in store.commits.ids.runs.models.values())
        if call.what == "sent" and call.data.startswith(b"committed"):
            acknowledged = int(call.data.split()[1])
        disk.apply(call)
    assert moved > 10


# -- the service


@pytest.mark.usefixtures("small")
def test_a_service_that_never_rests_moves_ids_and_tells_duplicates(tmp_path: Path) -> None:
    def event(client: int, number: int) -> Event:
        return Event({"a": float(number)}, number % 2, f"{client}-{number}")

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            runs, most = engine.disk.store.commits.ids.runs, 0

            async def client(number: int) -> None:
                nonlocal most
                for i in range(60):
                    (first,) = await engine.learn("default", [event(number, i)])
                    assert isinstance(first, Learned)
                    if i:
                        (again,) = await engine.learn("default", [event(number, i // 2)])
                        assert isinstance(again, Duplicate)
                    most = max(most, runs.new_ids)

            await asyncio.gather(*(client(number) for number in range(8)))
            (has,) = runs.models.values()
            assert most <= merging.FLUSHED_IDS + 2 * 8
            assert max(has.runs) > merging.FAN_IN  # some were merged
            assert len(has.runs) < 3 * merging.FAN_IN
        assert len(ids_in(tmp_path)) == 8 * 60

    asyncio.run(story())

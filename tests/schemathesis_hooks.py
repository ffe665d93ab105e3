"""What schemathesis has to be told to ask the service well: bodies of streams, and which model is not one to delete."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pyarrow as pa
import schemathesis
from hypothesis import strategies as st

numbers = st.one_of(st.floats(-1e100, 1e100), st.integers(-100, 100), st.booleans())
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
events = st.fixed_dictionaries(
    {"x": st.one_of(st.dictionaries(names, st.one_of(numbers, names), max_size=5), st.lists(numbers, max_size=5))},
    optional={"y": st.sampled_from([0, 1, True, False, 0.5, None]), "id": names, "weight": st.floats(-1, 9)},
)
lines = st.one_of(events.map(json.dumps), st.text(max_size=30))


def arrow(rows: list[tuple[float, int | None, bool]], with_label: bool, flips: list[int]) -> bytes:
    """A stream of Arrow, with some of its bits flipped."""
    columns: dict[str, Any] = {"a": [row[0] for row in rows], "b": [row[2] for row in rows]}
    if with_label:
        columns["y"] = pa.array([row[1] for row in rows], pa.int8())
    sink = io.BytesIO()
    table = pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = bytearray(sink.getvalue())
    for flip in flips:
        data[flip % len(data)] ^= 1 << random.Random(flip).randrange(8)
    return bytes(data)


schemathesis.openapi.media_type("application/x-ndjson", st.lists(lines, max_size=8).map("\n".join).map(str.encode))
schemathesis.openapi.media_type(
    "application/vnd.apache.arrow.stream",
    st.builds(
        arrow,
        st.lists(st.tuples(st.floats(-1e9, 1e9), st.sampled_from([0, 1, None]), st.booleans()), max_size=20),
        st.booleans(),
        st.lists(st.integers(0, 10**6), max_size=2),
    ),
)


@schemathesis.serializer("application/x-ndjson", "application/vnd.apache.arrow.stream")
def as_it_is(_: Any, value: Any) -> bytes:
    """A body of bytes as it is; where schemathesis made up something else, as JSON."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@schemathesis.hook
def filter_case(_: Any, case: Any) -> bool:
    """`default` reappears empty when it is deleted, so that it is no resource that is gone afterwards. And whoever asks
    for a seq that does not come waits, and gets 503."""
    wanted = str((case.query or {}).get("min_seq", 0))
    if wanted.isdecimal() and int(wanted) > 0:
        return False
    return not (case.method == "DELETE" and case.path_parameters.get("model") == "default")

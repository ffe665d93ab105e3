"""The memory that the service may use, as control groups say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.learning.memory import memory_limit

MACHINE = memory_limit(Path("/nonexistent"))


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "1073741824\n"}, 2**30),  # a container with a namespace of its own
        ("0::/system.slice/logstep.service\n", {"system.slice/logstep.service/memory.max": "1048576"}, 2**20),
        ("0::/a/b\n", {"a/memory.max": "4096", "a/b/memory.max": "8192"}, 4_096),  # one around it is less
        ("0::/a\n", {"a/memory.max": "max\n"}, MACHINE),
        ("4:memory:/docker/x\n", {"memory/memory.limit_in_bytes": "512"}, 512),  # v1; the path is the host's
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4_096)}, MACHINE),  # v1's way to say none
        ("1:cpu:/\n0::/\n", {}, MACHINE),
    ],
)
def test_the_least_limit_counts(tmp_path: Path, own: str, files: dict[str, str], expected: float) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert memory_limit(tmp_path / "own", tmp_path / "cgroup") == expected

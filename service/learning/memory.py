"""How much memory this process may use before the kernel kills it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def memory_limit(own: Path = OWN, cgroups: Path = CGROUPS) -> float:
    """The least limit of the process's control group and those around it, in bytes; never more than the machine has.

    Containers and systemd set it (`--memory`, `mem_limit`, `resources.limits`, `MemoryMax`).
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float(min([machine, *_limits(own, cgroups)]))


def _limits(own: Path, cgroups: Path) -> Iterator[int]:
    """Every limit that applies, of cgroup v2 ("0::/path", memory.max) or v1 ("7:memory:/path")."""
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top, name = (cgroups / "memory", "memory.limit_in_bytes") if controllers else (cgroups, "memory.max")
            group = Path(path.lstrip("/"))
            # Inside a container the path may be the host's, and only its top is there.
            for folder in (group, *group.parents):
                if (text := _read(top / folder / name).strip()).isdigit():  # or "max", or nothing
                    yield int(text)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

"""Chooses the folder of compiled kernels (core/compiled.py), and says so while they are being compiled."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba.core import event

from service.commands.terminal import say


class Compiling(event.Listener):  # type: ignore[misc]  # numba's types are left out, see pyproject.toml
    """Prints a line when the first kernel is compiled."""

    said = False

    def on_start(self, _: Any) -> None:
        if self.said:
            return
        self.said = True
        gc.enable()
        # core has chosen the cache folder before it compiles its first kernel.
        from core.compiled import cache

        found = cache()
        if found is not None and found.writable:
            say(f"compiling, which may take a minute; {found.folder} keeps the result for the next start")
        else:
            where = f"{found.folder} is not writable" if found else "no folder is writable"
            say(
                f"compiling, which may take a minute at each start: {where}, so the result cannot be kept. Set "
                "NUMBA_CACHE_DIR to a writable folder"
            )

    def on_end(self, _: Any) -> None:
        """Print nothing."""


@contextmanager
def watched(data: Path | None = None) -> Iterator[None]:
    """Wraps an import of core, which loads or compiles its kernels.

    data: a data folder, which keeps the kernels if the user has no cache folder.
    """
    if data is not None:
        os.environ["CORE_KERNELS_ELSE"] = str(data.absolute() / "kernels")
    with event.install_listener("numba:compile", compiling := Compiling()):
        yield
        if compiling.said:  # now, and not when the first model with the rule auto is made
            import core.auto  # noqa: F401

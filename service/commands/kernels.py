"""Compiled kernels: where they are kept (core/compiled.py), and what is said when they are not there yet."""

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
    """Says so at the first kernel that is compiled, and what becomes of it."""

    said = False

    def on_start(self, _: Any) -> None:
        if self.said:
            return
        self.said = True
        gc.enable()
        # What is compiled first is a part of core, which decides before that where kernels are kept.
        from core.compiled import cache

        found = cache()
        if found is not None and found.writable:
            say(f"compiling, which may take half a minute; for the next start it is kept in {found.folder}")
        else:
            where = f"it cannot be kept in {found.folder}" if found else "there is no folder that it can be kept in"
            say(
                f"compiling, which may take half a minute, at each start: {where}. Name one that can be written to in "
                "NUMBA_CACHE_DIR"
            )

    def on_end(self, _: Any) -> None:
        """Nothing more is said."""


@contextmanager
def watched(data: Path | None = None) -> Iterator[None]:
    """Around what imports core, which loads its kernels, or compiles them.

    data: a data folder, in which kernels are kept where the user has no folder for them.
    """
    if data is not None:
        os.environ["CORE_KERNELS_ELSE"] = str(data.absolute() / "kernels")
    with event.install_listener("numba:compile", Compiling()):
        yield

"""Runs the command as a child process that stops when its parent ends."""

from __future__ import annotations

import os
import signal

from service.children import end_with_parent
from service.commands import cli

if __name__ == "__main__":
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    raise SystemExit(cli.main())

"""Where the command `logstep` starts: Ctrl-C while its modules are imported ends it as later, without a traceback."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Import the command line and run it; returns its exit code."""
    interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, as under nohup
    if interrupts:
        # An exception could come out of an import as another one.
        signal.signal(signal.SIGINT, _end)
    from service.commands import cli

    if interrupts:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


def _end(*_: object) -> None:
    sys.stderr.write("logstep: interrupted\n")
    sys.stderr.flush()
    os._exit(130)


if __name__ == "__main__":  # a service that the demo started: it stops when its parent ends
    from service.children import end_with_parent

    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    raise SystemExit(main())

"""What refused requests cost the good ones of their turn: `python tests/benchmarks/refusing.py [ROUNDS]`.

4,000 events with ids wait for the writer, each a request of its own; then the same with 4,000 refused requests among
them. Prints the median time of each and their ratio. Refusing is linear if the ratio does not grow with the number.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from service.clock import SYSTEM
from service.events import Event
from service.learning.engine import Engine
from service.settings import Settings

GOOD = 4_000


async def learn(engine: Engine, first: int, refused: bool, count: int) -> float:
    """Seconds until all are answered."""
    answers = []
    started = time.perf_counter()
    for i in range(first, first + count):
        answers.append(engine.queue.enqueue("default", [Event({"a": float(i % 7), "b": 1.0}, i % 2, f"e{i}")]))
        if refused:
            answers.append(engine.queue.enqueue("default", [Event({"a": 1e301}, 1)]))
    await asyncio.wait(answers)
    return time.perf_counter() - started


async def measure(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Settings(data=Path(folder), commit_events=4 * GOOD, queue_events=8 * GOOD), SYSTEM)
        await engine.start()
        first = 0
        for count in (GOOD // 4, GOOD):
            seconds: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(rounds):
                for refused, into in seconds.items():
                    into.append(await learn(engine, first, refused, count))
                    first += count
            alone, beside = median(seconds[False]), median(seconds[True])
            print(
                f"{count:,} events: {alone * 1e3:.0f} ms; with as many refused beside them: {beside * 1e3:.0f} ms, "
                f"{beside / alone:.2f} times"
            )
        await engine.stop(seconds=1)


if __name__ == "__main__":
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 9))

"""Write a golden data folder with the onestep of a checkout: what a version leaves behind, to be opened by all later.

    git worktree add --detach /tmp/old COMMIT
    python -m venv /tmp/old-venv && /tmp/old-venv/bin/pip install -e '/tmp/old[dev]'
    PATH=/tmp/old-venv/bin:$PATH PYTHONPATH=/tmp/old/tests python tests/golden/write.py tests/golden/format-N

The folder `data` is as a kill leaves it: snapshots, events after them in the write-ahead log, ids; from format 2 on
also predictions that wait. `expected.json` has seq and SHA-256 of each model as that version told them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from processes import Service

SPECS: dict[str, dict[str, Any]] = {
    "adam": {"rule": "adam", "scale": "standard"},
    "ftrl": {"rule": "ftrl", "l1": 0.1},
    "penalty": {"l2": 0.01, "learning_rate": {"schedule": "inverse_scaling", "learning_rate": 0.5, "power": 0.5}},
    "hashed": {"hash_bits": 8},
}


def events(first: int, count: int) -> list[dict[str, Any]]:
    """Events of numbers, text and booleans, each with an id."""
    return [
        {
            "x": {"age": i % 48 / 16, "country": "FR" if i % 3 else "DÉ", "vip": i % 2 == 0, f"late-{i // 40}": 0.5},
            "y": (i // 2) % 2,
            "id": f"event-{i}",
            "weight": 1.0 if i % 5 else 0.5,
        }
        for i in range(first, first + count)
    ]


def learn(service: Service, first: int, count: int) -> None:
    """The same events for every model."""
    for model in ("default", *SPECS):
        service.learn(events(first, count), model)


def predict(service: Service) -> list[str]:
    """Predictions that wait, where the version keeps them: their ids. They do so for ten years, the most there is."""
    if service.request("PUT", "/models/joined", {"join": {"keep": "3650d"}})[0] != 201:
        return []
    ids = ["waits-1", "waits-2"]
    for id_ in ids:
        assert service.request("POST", "/models/joined/predict", {"x": {"age": 2.0}, "id": id_})[0] == 200
    return ids


def write(to: Path) -> None:
    folder = to / "data"
    with Service(folder, "--snapshot-seconds", "0.00001").wait_until_ready() as service:
        for name, spec in SPECS.items():
            assert service.request("PUT", f"/models/{name}", spec)[0] == 201
        for first in range(0, 120, 40):
            learn(service, first, 40)
        assert service.stop() == 0
    with Service(folder, "--snapshot-seconds", "1000").wait_until_ready() as service:
        learn(service, 120, 10)
        waiting = predict(service)
        names = ("default", *SPECS, *(["joined"] if waiting else []))
        found = {name: service.get(f"/models/{name}") for name in names}
        expected = {name: {"seq": model["seq"], "sha256": model["sha256"]} for name, model in found.items()}
    (folder / "lock").unlink()
    (folder / "log.db-shm").unlink(missing_ok=True)
    Path(f"{folder}.service-log").unlink()
    (to / "expected.json").write_text(json.dumps({"models": expected, "waiting": waiting}, indent=2) + "\n")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    write(target)

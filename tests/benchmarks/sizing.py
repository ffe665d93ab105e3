"""The cost of an event, a feature and a model, from the service's metrics: bytes on disk, processor time, memory.

    python tests/benchmarks/sizing.py

Events of 10, 30 and 100 features with random values, as NDJSON: without ids, with sequential ids and with random ids.
Processor time is the whole process's, so other programs hardly affect it.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness import Service  # needs the path above
from prometheus_client.parser import text_string_to_metric_families

VALUES = 1_500_000
"""Feature values in a stream, for example 150,000 events of 10."""
FEATURES = 500_000
MODELS = 2_000
ND = {"content-type": "application/x-ndjson"}
JSON = {"content-type": "application/json"}


def metrics(http: httpx.Client) -> dict[str, float]:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def lines(count: int, features: int, ids: str) -> Iterator[bytes]:
    rng = random.Random(0)
    for start in range(0, count, 1_000):
        events = []
        for i in range(start, min(start + 1_000, count)):
            event = {"x": {f"feature_{k}": round(rng.gauss(0, 1), 4) for k in range(features)}, "y": i % 2}
            if ids:
                event["id"] = str(uuid.UUID(int=rng.getrandbits(128))) if ids == "random" else f"order-{i:08d}"
            events.append(json.dumps(event))
        yield ("\n".join(events) + "\n").encode()


def stream(folder: Path, features: int, ids: str) -> tuple[float, float]:
    """Bytes on disk and microseconds of processor time per event of a stream."""
    count = VALUES // features
    body = b"".join(lines(count, features, ids))
    with Service(folder, "--snapshot-seconds", "1000").wait_until_ready() as service:
        with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=300, trust_env=False) as http:
            before = metrics(http)
            assert http.post("/learn", content=body, headers=ND).json()["learned"] == count
            after = metrics(http)
        assert service.stop() == 0
    cpu = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    return (folder / "log.db").stat().st_size / count, cpu / count * 1e6


def memory(service: Service) -> tuple[float, float, float]:
    """Bytes of memory at the start, per feature, and per model."""
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=300, trust_env=False) as http:
        start = metrics(http)["process_resident_memory_bytes"]
        for model in range(MODELS):
            assert http.put(f"/models/m{model}", content="{}", headers=JSON).status_code == 201
            http.post(f"/models/m{model}/learn", content='{"x": {"a": 1}, "y": 1}', headers=JSON)
        models = metrics(http)["process_resident_memory_bytes"]
        body = "\n".join(
            json.dumps({"x": {f"feature_{k}": 1 for k in range(first, first + 100)}, "y": 1})
            for first in range(0, FEATURES, 100)
        )
        assert http.post("/learn", content=body, headers=ND).status_code == 200
        features = metrics(http)["process_resident_memory_bytes"]
    return start, (features - models) / FEATURES, (models - start) / MODELS


def main() -> None:
    with tempfile.TemporaryDirectory() as below:
        print("features  ids       bytes an event  us an event")
        for features in (10, 30, 100):
            for ids in ("", "count up", "random"):
                size, cpu = stream(Path(below) / f"{features}-{ids}", features, ids)
                print(f"{features:8}  {ids or 'none':8}  {size:14.0f}  {cpu:11.1f}", flush=True)
        with Service(Path(below) / "memory").wait_until_ready() as service:
            start, feature, model = memory(service)
        print(f"memory: {start / 1e6:.0f} MB at the start, {feature:.0f} bytes a feature, {model / 1e3:.1f} kB a model")


if __name__ == "__main__":
    main()

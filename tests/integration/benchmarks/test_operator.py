"""The benchmark of the operator with five jobs, on a control plane of its own."""

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.operator.__main__ import main
from benchmarks.operator.node import Reached
from benchmarks.operator.plane import plane
from benchmarks.operator.population import original, populate
from benchmarks.operator.residents import restart

JOBS = 5
pytestmark = pytest.mark.control_plane


def test_throughput_is_measured_beside_a_bare_client_and_gated(tmp_path: Path) -> None:
    figures, gate = tmp_path / "figures.json", tmp_path / "gate.json"
    measure = [f"--jobs={JOBS}", "--only=throughput", f"--folder={tmp_path}", f"--json={figures}"]
    case = f"throughput {JOBS}"
    perfect = {"what": "operator / bare client", "value": 1e6, "better": "higher", "gated": True}
    gate.write_text(json.dumps({"cases": {case: [perfect]}}))

    assert main([*measure, f"--gate={gate}"]) == 1, "no operator is a thousand times as fast as the bare client"

    found = {figure["what"]: figure for figure in json.loads(figures.read_text())["cases"][case]}
    ratio = found["operator / bare client"]["value"]
    bare = (found["bare client before"]["value"] + found["bare client after"]["value"]) / 2
    assert abs(ratio - 100 * found["operator"]["value"] / bare) < 0.01
    requests = found["requests up to the child Job"]["more"]
    assert requests["create jobs"] == requests["create configmaps"] == JOBS, "requests of the operator, and no others"
    assert found["processor time, with the start"]["value"] > 0


def test_an_operator_that_starts_beside_copies_of_its_jobs_writes_nothing(tmp_path: Path) -> None:
    async def figures() -> dict[str, float]:
        async with plane(tmp_path) as place:
            copies = await populate(place, await original(place, Reached.TRAINING), JOBS)
            assert len({copy["metadata"]["uid"] for copy in copies}) == JOBS
            return {figure.what: figure.value async for figure in restart(place)}

    found = asyncio.run(figures())
    assert found["restart, writes"] == 0
    assert found["restart, requests"] > 0
    assert found["restart, peak memory"] >= found["restart, steady memory"] > 0
    assert found["restart, until ready"] <= found["restart, until steady"]

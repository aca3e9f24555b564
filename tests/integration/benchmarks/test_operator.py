"""The benchmark of the operator with five jobs, on a control plane of its own."""

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.operator import copies
from benchmarks.operator.__main__ import main
from benchmarks.operator.client import Object
from benchmarks.operator.copies import Original
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


@pytest.mark.thorough
def test_an_operator_that_starts_beside_copies_of_its_jobs_writes_nothing(tmp_path: Path) -> None:
    async def figures() -> dict[str, float]:
        async with plane(tmp_path) as place:
            jobs = await populate(place, await original(place, Reached.TRAINING), JOBS)
            assert len({job["metadata"]["uid"] for job in jobs}) == JOBS
            where = [(job["metadata"]["namespace"], job["metadata"]["name"]) for job in jobs]
            require_clone(*[await copies.read(place.admin, *where[number]) for number in (0, -1)])
            return {figure.what: figure.value async for figure in restart(place)}

    found = asyncio.run(figures())
    assert found["restart, writes"] == 0
    assert found["restart, requests"] > 0
    assert found["restart, peak memory"] >= found["restart, steady memory"] > 0
    assert found["restart, until ready"] <= found["restart, until steady"]


def require_clone(copy: Original, clone: Original) -> None:
    """The API server shows a clone in etcd like the copy that was made with requests."""
    rename = copies.renaming(copy, clone.job)
    assert clone.job["status"] == rename(copy.job["status"])
    assert len(clone.job["metadata"]["managedFields"]) == len(copy.job["metadata"]["managedFields"]) > 1
    assert [len(clone.config_maps), len(clone.batch_jobs), len(clone.pods)] == [1, 2, 2]
    assert {owner(job) for job in clone.batch_jobs} == {clone.job["metadata"]["uid"]}
    assert {owner(pod) for pod in clone.pods} == {job["metadata"]["uid"] for job in clone.batch_jobs}
    assert [pod["status"] for pod in clone.pods] == [rename(pod["status"]) for pod in copy.pods]
    uids = [{body["metadata"]["uid"] for body in (job.job, *job.batch_jobs, *job.pods)} for job in (copy, clone)]
    assert len(uids[0] | uids[1]) == 10


def owner(body: Object) -> str:
    return str(body["metadata"]["ownerReferences"][0]["uid"])

"""Fifty FineTuneJobs at once against one GPU: none lost, one after another, in flat memory."""

from collections import Counter

import pytest

from tests.integration.api_proxy import ApiProxy
from tests.integration.finetune_operator.kubelet import Kubelet
from tests.integration.finetune_operator.looking import settle
from tests.integration.finetune_operator.operator_process import OperatorProcess
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import JOBS, Kube
from tests.integration.waiting import wait_for

MANY, FEW = 50, 10
MOST_GROWTH_BYTES = 4 * 1024 * 1024
"""From the tenth job's end to the fiftieth's: interpreter noise, not a record for each job."""


@pytest.mark.thorough
def test_fifty_jobs_at_once_all_end_and_then_cost_nothing(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet, proxy: ApiProxy
) -> None:
    def complete() -> int:
        kubelet.advance(namespace)
        jobs = kube.list(JOBS.format(namespace))
        return sum(job["status"].get("state") == "Complete" for job in jobs)

    operator.stop()
    operator.start()
    kubelet.most_gpu_pods = 0
    jobs = [Job.create(kube, namespace, manifest(f"job-{i}")) for i in range(MANY)]
    wait_for("the first jobs", complete, lambda count: count >= FEW, timeout=120)
    after_few = operator.resident_bytes()
    wait_for("all jobs", complete, lambda count: count == MANY, timeout=240)
    after_many = operator.resident_bytes()

    assert kubelet.most_gpu_pods == 1
    print(f"operator: {after_few / 2**20:.1f} MiB after {FEW} jobs, {after_many / 2**20:.1f} MiB after {MANY}")
    assert after_many - after_few < MOST_GROWTH_BYTES, (after_few, after_many)
    assert Counter(step for job in jobs for step in job.batch_jobs()) == {PREFLIGHT: MANY, ATTEMPT: MANY}
    starts = sorted(job.status()["attempts"][0]["startTime"] for job in jobs)
    ends = sorted(job.status()["attempts"][0]["completionTime"] for job in jobs)
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))

    settle(kube, namespace, "first")
    before = len(proxy.writes(namespace))
    operator.stop()
    operator.start()  # it decides when it has read every object
    settle(kube, namespace, "second")
    written = [call for call in proxy.writes(namespace)[before:] if "second" not in str(call)]
    assert written == []

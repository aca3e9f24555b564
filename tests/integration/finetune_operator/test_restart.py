"""The operator is killed at the worst moments and started again: nothing is made twice, nothing is lost.

The proxy kills it in the middle of a request: before it reaches the API server, or once it was carried out and before
the operator hears of it.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import pytest

from finetune_api import names
from tests.integration.api_proxy import ApiProxy, Call
from tests.integration.finetune_operator.kubelet import Kubelet
from tests.integration.finetune_operator.operator_process import OperatorProcess
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import Kube
from tests.integration.waiting import wait_for


@dataclass(frozen=True)
class Moment:
    """Before or after a request of the operator, told by method, last part of the path, and a text in its body."""

    side: Literal["before", "after"]
    method: str
    resource: str
    text: str = ""
    running: str = ""
    """The Job whose pod has to be seen running, which a pod that soon ends need not be."""

    def is_now(self, call: Call) -> bool:
        there = call.method == self.method and call.path.endswith(f"/{self.resource}")
        return there and self.text in str(call.body)


MOMENTS = {
    "the ServiceAccount is there": Moment("after", "POST", "serviceaccounts"),
    "the RoleBinding is there": Moment("after", "POST", "rolebindings"),
    "the ConfigMap is there": Moment("after", "POST", "configmaps"),
    "the preflight Job is there": Moment("after", "POST", "jobs", "preflight"),
    "the preflight Job is there, its status is not": Moment("before", "PATCH", "status", "PreflightPending"),
    "the preflight pod runs": Moment("before", "PATCH", "status", "Validating", PREFLIGHT),
    "the data is validated, which is read once more": Moment("before", "GET", f"{names.JOBS}/tickets"),
    "the data is validated, the attempt's Job is not there": Moment("before", "POST", "jobs", "--attempt"),
    "the attempt's Job is there": Moment("after", "POST", "jobs", "--attempt"),
    "the attempt's pod runs": Moment("after", "PATCH", "status", "'stage': 'Training'", ATTEMPT),
    "the attempt succeeded, nobody was told": Moment("before", "POST", "events", "Succeeded"),
    "the last Event is there, Complete is not": Moment("before", "PATCH", "status", "'type': 'Complete'"),
}


@pytest.mark.thorough_for(
    "the ServiceAccount is there",
    "the RoleBinding is there",
    "the attempt's Job is there",
    "the data is validated, which is read once more",
)
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_operator_killed_and_started_again_makes_nothing_twice(
    moment: str, kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet, proxy: ApiProxy
) -> None:
    then = MOMENTS[moment]
    (proxy.before if then.side == "before" else proxy.after)(then.is_now, operator.kill)
    job = Job.create(kube, namespace, manifest())
    if then.running == ATTEMPT:
        kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    if then.running:
        kubelet.pod_of(namespace, job.child(then.running)).runs()
        wait_for("the operator to be killed", lambda: not operator.is_running)
    else:
        kubelet.play(namespace, lambda: not operator.is_running)
    before = job.children()

    operator.start()
    kubelet.play(namespace, job.is_complete)

    after = job.children()
    assert before.items() <= after.items()
    assert Counter(child.split("/")[0] for child in after) == {"Job": 2, "Pod": 2, "ConfigMap": 1}
    said = [(event["reason"], event["message"]) for event in job.events()]
    assert said[-1][0] == "Succeeded"
    assert len({reason for reason, _ in said}) == len(said), said
    assert job.status()["counts"] == {"attempts": 1}

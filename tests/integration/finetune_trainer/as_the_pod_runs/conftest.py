"""Each case is run once, by the first test that asks for it."""

from collections.abc import Callable

import pytest

from tests.integration.finetune_trainer.as_the_pod_runs.cases import CASES, STOPPED, TRAININGS
from tests.integration.finetune_trainer.as_the_pod_runs.inputs import write_all
from tests.integration.finetune_trainer.as_the_pod_runs.pod import Ended, Pods

RunCase = Callable[[str], Ended]


@pytest.fixture(scope="package")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Pods:
    """Pods over a folder with every model and file."""
    pods = Pods(tmp_path_factory.mktemp("pods"))
    write_all(pods.data)
    return pods


@pytest.fixture(scope="package")
def checked(pods: Pods) -> RunCase:
    """How the preflight of a case ended."""
    ends: dict[str, Ended] = {}

    def run(name: str) -> Ended:
        if name not in ends:
            ends[name] = pods.preflight(CASES[name])
        return ends[name]

    return run


@pytest.fixture(scope="package")
def trained(pods: Pods, checked: RunCase) -> RunCase:
    """How the attempt at a case ended, after its preflight and the job with whose adapter or checkpoint it begins."""
    ends: dict[str, Ended] = {}

    def run(name: str) -> Ended:
        if name not in ends:
            if "from" in TRAININGS[name].get("method", {}).get("lora", {}):
                run("lora")
            if "resumeFrom" in TRAININGS[name]:
                pods.preflight(STOPPED)
                pods.train(STOPPED, stop_at="Training: step 1 ")
            assert checked(name).code == 0, checked(name).log
            ends[name] = pods.train(TRAININGS[name])
        return ends[name]

    return run

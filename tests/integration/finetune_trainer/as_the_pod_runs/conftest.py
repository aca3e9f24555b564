"""Each case is run once, by the first test that asks for it."""

import json
from collections.abc import Callable, Iterator

import pytest

from tests.integration.finetune_trainer.as_the_pod_runs.cases import (
    CASES,
    HUB_MODEL,
    HUB_REVISION,
    HUB_ROWS,
    STOPPED,
    TRAININGS,
)
from tests.integration.finetune_trainer.as_the_pod_runs.inputs import write_all
from tests.integration.finetune_trainer.as_the_pod_runs.pod import Ended, Pods
from tests.integration.hub_server.server import HubServer, running_hub
from tests.unit.finetune_trainer.conftest import sum_rows

RunCase = Callable[[str], Ended]


HUB_TOKEN = "hf_of_the_tests"


@pytest.fixture(scope="package")
def hub() -> Iterator[HubServer]:
    """A hub. The account of HUB_TOKEN has access to its gated model."""
    with running_hub() as server:
        server.tokens = {HUB_TOKEN: {HUB_MODEL}}
        yield server


@pytest.fixture(scope="package")
def pods(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Pods:
    """Pods over a folder with every model and file, and a hub with the same model."""
    settings = {"endpoint": hub.endpoint, "allowed": ["acme/*", "datasets/acme/*"]}
    pods = Pods(tmp_path_factory.mktemp("pods"), settings, HUB_TOKEN)
    write_all(pods.data)
    hub.commit(HUB_MODEL, pods.data / "base", ref=HUB_REVISION, gated=True)
    rows = "".join(f"{json.dumps(row)}\n" for row in sum_rows(60))
    hub.commit(f"datasets/{HUB_ROWS}", {"data/sums.jsonl": rows.encode()})
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

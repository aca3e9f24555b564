"""What a hub can refuse, and the rows that a job can read from it, asked of the process that a pod runs."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.reasons import FAILURES, FailureReason
from tests.integration.finetune_trainer.as_the_pod_runs.cases import HUB_MODEL, HUB_REVISION, HUB_ROWS, TRAININGS
from tests.integration.finetune_trainer.as_the_pod_runs.conftest import HUB_TOKEN
from tests.integration.finetune_trainer.as_the_pod_runs.inputs import labels, objects
from tests.integration.finetune_trainer.as_the_pod_runs.pod import DATA, Pods
from tests.integration.hub_server.faults import Faults
from tests.integration.hub_server.protocol import PAGE
from tests.integration.hub_server.server import HubServer

PRIVATE, DAMAGED, MANY, GATED_ROWS = "acme/private", "acme/damaged", "acme/many", "acme/gated-rows"
SECRET = {"tokenSecretRef": {"name": "hub-token", "key": "token"}}
OPEN = {"uri": f"{DATA}/base"}
"""A model that needs no hub."""
SHARDS = 2 * PAGE
ROWS_OF_A_SHARD = 3


@pytest.fixture(scope="module", autouse=True)
def repositories(pods: Pods, hub: HubServer) -> None:
    """A private model, a model with a damaged file, a gated data set, and a data set of more files than a page."""
    base = {path.name: path.read_bytes() for path in (pods.data / "base").iterdir()}
    hub.commit(PRIVATE, base, private=True)
    hub.commit(DAMAGED, base | {"tokenizer.json": base["tokenizer.json"] + b"\n"})
    hub.flip(DAMAGED, "tokenizer.json")
    rows = labels(SHARDS * ROWS_OF_A_SHARD)
    files = {f"data/part-{number}.jsonl": rows[number::SHARDS] for number in range(SHARDS)}
    files["objects.jsonl"] = objects(8)
    data = {path: "".join(f"{json.dumps(row)}\n" for row in rows).encode() for path, rows in files.items()}
    hub.commit(f"datasets/{MANY}", data)
    hub.commit(f"datasets/{GATED_ROWS}", data, gated=True)


@pytest.fixture
def faults(hub: HubServer) -> Iterator[Faults]:
    """What goes wrong at the hub in this test alone."""
    hub.faults = Faults()
    yield hub.faults
    hub.faults = Faults()


def job(model: dict[str, Any], evaluation: dict[str, Any] | None = None, **sources: Any) -> dict[str, Any]:
    """A job with this model and these sources."""
    return {
        "model": model,
        "dataset": {"train": [{"uri": f"{DATA}/sums.jsonl"}]} | sources,
        "output": {"uri": f"{DATA}/out/hub-refusals"},
    } | ({"evaluation": evaluation} if evaluation else {})


def regression(uri: str) -> dict[str, Any]:
    return {"regression": [{"name": "general", "uri": uri, "metric": "Loss", "maxDrop": 1}]}


@pytest.mark.thorough_for("validation*", "test*", "*-token", "unknown*")
@pytest.mark.parametrize(
    ("spec", "token", "reason", "said"),
    [
        pytest.param(
            job({"uri": f"hf://{HUB_MODEL}", "revision": HUB_REVISION}),
            HUB_TOKEN,
            FailureReason.MODEL_ACCESS_DENIED,
            [f"hf://{HUB_MODEL} is gated. The job has no token.", "and set spec.model.tokenSecretRef to a Secret"],
            id="gated-without-a-token",
        ),
        pytest.param(
            job({"uri": f"hf://{HUB_MODEL}", "revision": HUB_REVISION} | SECRET),
            "",
            FailureReason.MODEL_ACCESS_DENIED,
            ["because Secret hub-token", "with the key token is missing, empty or not plain text."],
            id="gated-without-a-secret",
        ),
        pytest.param(
            job({"uri": f"hf://{PRIVATE}"}),
            HUB_TOKEN,
            FailureReason.MODEL_NOT_FOUND,
            [f"hf://{PRIVATE} does not exist on http", "or is private. The job has no token.", "spec.model.uri."],
            id="private-without-a-token",
        ),
        pytest.param(
            job({"uri": f"hf://{PRIVATE}"} | SECRET),
            "hf_wrong",
            FailureReason.MODEL_ACCESS_DENIED,
            ["does not accept the token in Secret hub-token, key token (spec.model.tokenSecretRef)"],
            id="wrong-token",
        ),
        pytest.param(
            job({"uri": "hf://acme/none"} | SECRET),
            HUB_TOKEN,
            FailureReason.MODEL_NOT_FOUND,
            ["hf://acme/none does not exist on http", "may not see it.", "Correct spec.model.uri."],
            id="unknown-repository",
        ),
        pytest.param(
            job({"uri": f"hf://{HUB_MODEL}", "revision": "v9"} | SECRET),
            HUB_TOKEN,
            FailureReason.MODEL_NOT_FOUND,
            [f"hf://{HUB_MODEL} has no revision v9.", "Set spec.model.revision to a branch, a tag or a commit"],
            id="unknown-revision",
        ),
        pytest.param(
            job({"uri": f"hf://{DAMAGED}"}),
            HUB_TOKEN,
            FailureReason.STORAGE_UNAVAILABLE,
            [f"The content of hf://{DAMAGED}/tokenizer.json does not match the digest", "spec.hub.endpoint"],
            id="damaged-file",
        ),
        pytest.param(
            job(OPEN, test=[{"uri": "hf://datasets/acme/none/data/*.jsonl"}]),
            HUB_TOKEN,
            FailureReason.DATASET_NOT_FOUND,
            ["hf://datasets/acme/none does not exist on http", "Correct the name in spec.dataset.test[0].uri."],
            id="test-of-an-unknown-data-set",
        ),
        pytest.param(
            job(OPEN, validation=[{"uri": f"hf://datasets/{GATED_ROWS}/data/part-0.jsonl"}]),
            HUB_TOKEN,
            FailureReason.STORAGE_ACCESS_DENIED,
            [f"hf://datasets/{GATED_ROWS} is gated. The job has no token.", "in spec.model.tokenSecretRef or in the"],
            id="validation-of-a-gated-data-set",
        ),
        pytest.param(
            job(OPEN, regression(f"hf://datasets/{MANY}/data/none.jsonl")),
            HUB_TOKEN,
            FailureReason.DATASET_NOT_FOUND,
            [
                f"There is no hf://datasets/{MANY}/data/none.jsonl at revision main.",
                "Correct the path in spec.evaluation.regression[0].uri.",
            ],
            id="regression-of-an-unknown-file",
        ),
    ],
)
def test_a_refusal_of_the_hub_ends_the_preflight_with_its_reason_and_what_to_correct(
    pods: Pods, faults: Faults, spec: dict[str, Any], token: str, reason: FailureReason, said: list[str]
) -> None:
    ended = pods.preflight(spec, token)
    assert ended.message.reason is reason, ended.log
    assert ended.code == FAILURES[reason].exit_code
    assert "Traceback" not in ended.log
    for words in said:
        assert words in ended.message.message
    assert token not in ended.log or not token


def test_a_preflight_reads_its_model_and_all_rows_from_a_hub_that_is_busy_and_cuts_connections(
    pods: Pods, hub: HubServer, faults: Faults
) -> None:
    """The pages of a list, the answers of the hub and the contents of its storage fail once each."""
    spec = job(
        TRAININGS["hub"]["model"],
        regression(f"hf://datasets/{MANY}/data/part-{SHARDS - 1}.jsonl"),
        train=[{"uri": f"hf://datasets/{HUB_ROWS}/data/*.jsonl"}],
        test=[{"uri": f"hf://datasets/{MANY}/data/*.jsonl"}],
        validation=[{"uri": f"hf://datasets/{MANY}/objects.jsonl"}],
    )
    faults.busy, faults.retry_after, faults.cuts, faults.cut_pages = 1, 1, 1, 1
    before = len(hub.asked)
    ended = pods.preflight(spec)
    assert ended.code == 0, ended.log
    assert (faults.busy, faults.cuts, faults.cut_pages) == (0, 0, 0), "each of them happened"
    assert "The next request is in 1 s." in ended.log
    preflight = ended.status.preflight
    assert preflight
    assert preflight.sources
    rows = {source.name: source.rows for source in preflight.sources}
    assert rows == {"train-1": 60, "test-1": SHARDS * ROWS_OF_A_SHARD, "validation-1": 8}
    read = [asked for asked in hub.asked[before:] if asked.server == "storage"]
    parts = Counter((asked.path, (asked.range or "").partition("-")[2]) for asked in read)
    assert sorted(parts.values())[-2:] == [1, 2], "the cut part was requested again, from where it was cut"
    assert len({asked.range for asked in read}) == len(read)

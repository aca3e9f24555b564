"""A tenant of the whole cluster: puts rows into S3, creates FineTuneJobs, and waits for how they end."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api import names
from tests.integration.jobs import Job
from tests.integration.kube import PROFILES, Kube, Object
from tests.integration.waiting import wait_for

PROFILE = "tests"
"""The FineTuneProfile of these tests; `default` is the demo's."""
END_SECONDS = 480.0
"""Longest a tiny job may take on two busy cores, behind a dozen others."""


@dataclass(frozen=True)
class Tenant:
    """`model` is the URI of the tiny model."""

    kube: Kube
    namespace: str
    s3: Any
    model: str

    def put_rows(self, key: str, rows: Sequence[Any]) -> str:
        """Rows as a .jsonl or .json object in the bucket data; returns its URI."""
        text = json.dumps(rows) if key.endswith(".json") else "".join(f"{json.dumps(row)}\n" for row in rows)
        self.s3.put_object(Bucket="data", Key=key, Body=text.encode())
        return f"s3://data/{key}"

    def create(self, name: str, train: str, labels: dict[str, str] | None = None, **spec: Any) -> Job:
        """A FineTuneJob over `train` of three short steps; `spec`'s fields stand beside or instead of its own."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.JOB_KIND,
            "metadata": {"name": name, "labels": labels or {}},
            "spec": {
                "profileName": PROFILE,
                "model": {"uri": self.model},
                "dataset": {"train": [{"uri": train}]},
                "training": {"maxSteps": 3},
                "evaluation": {"maxRows": 4},
                "output": {"uri": f"s3://results/{name}"},
                "compute": {"cpu": "500m", "memory": "2Gi"},
                **spec,
            },
        }
        return Job.create(self.kube, self.namespace, body)

    def profile_with_preflight_queue(self, queue: str) -> str:
        """Makes a copy of the profile in which the preflights have a queue. Returns its name."""
        return self.profile_with(f"preflights-in-{queue}", pods={"preflight": {"queueName": queue}})

    def profile_with(self, name: str, **parts: Any) -> str:
        """Makes a copy of the profile with these fields of its spec. Returns its name."""
        spec = self.kube.get(f"{PROFILES}/{PROFILE}")["spec"]
        body = {"apiVersion": names.API_VERSION, "kind": names.PROFILE_KIND, "metadata": {"name": name}}
        self.kube.apply(f"{PROFILES}/{name}", {**body, "spec": {**spec, **parts}})
        return name

    def make_secret(self, name: str, **values: str) -> None:
        """Makes a Secret in the namespace, or changes it."""
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}
        self.kube.apply(f"/api/v1/namespaces/{self.namespace}/secrets/{name}", body)

    def end_of(self, job: Job) -> Object:
        """The status, once it is Complete or Failed."""
        return wait_for(
            f"{job.name} to end", job.status, lambda s: s.get("state") in ("Complete", "Failed"), END_SECONDS
        )

    def objects(self, bucket: str, prefix: str) -> list[str]:
        """Keys below a prefix."""
        found = self.s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        return [item["Key"] for item in found]


def message(status: Object) -> str:
    """The sentence on Ready."""
    return str(next(c["message"] for c in status["conditions"] if c["type"] == "Ready"))


def truth(status: Object) -> dict[str, str]:
    """Status of each condition by type."""
    return {c["type"]: c["status"] for c in status["conditions"]}


def gpus_asked_for(job: Job) -> list[str]:
    """Names of the job's batch Jobs whose pods ask for a GPU."""
    return [name for name, child in job.batch_jobs().items() if "nvidia.com/gpu" in json.dumps(child["spec"])]


def sums(count: int) -> list[Object]:
    """Rows that are all different, in columns of a tenant's own."""
    return [{"q": f"What is {i} plus {i}?", "a": f"It is {2 * i}."} for i in range(count)]


SUMS_COLUMNS = {"prompt": "q", "completion": "a"}

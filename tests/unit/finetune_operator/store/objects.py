"""Watched objects as the API server sends them."""

from typing import Any

from finetune_api import names
from finetune_api.bundle import Bundle
from finetune_operator.observed.facts.pods import Object

CREATED = "2026-01-02T03:04:05Z"


def job(uid: str = "j", version: int = 1, name: str = "tickets", **parts: Any) -> Object:
    """A FineTuneJob. `status`: its status; `output`: its output.uri; `generation`: of its spec."""
    generation = parts.get("generation", 1)
    return {
        "metadata": {
            **_metadata(uid, version, name),
            "generation": generation,
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {"profileName": parts.get("profile", "default"), "output": {"uri": parts.get("output", "s3://r/run")}},
        "status": parts.get("status", {}),
    }


def validated(**status: Any) -> Object:
    """The status of a job that has passed its preflight."""
    return {**status, "conditions": [{"type": "Validated", "status": "True"}]}


def run(uid: str = "r", version: int = 1, owner: str = "j", step: str = "train", **parts: Any) -> Object:
    """A child Job: the first preflight or attempt."""
    first = names.attempt_name("tickets", owner, 1) if step == "train" else names.preflight_name("tickets", owner)
    metadata = _metadata(uid, version, first)
    metadata["labels"] = {names.LABEL_STEP: step, names.LABEL_ATTEMPT: "1"}
    metadata["ownerReferences"] = [{"uid": owner, "controller": True}]
    return {"metadata": {**metadata, **parts}, "spec": {}, "status": {}}


def pod(uid: str = "p", version: int = 1, owner: str = "r", phase: str = "Running", **parts: Any) -> Object:
    """A Pod of a child Job."""
    metadata = {**_metadata(uid, version, "pod"), "ownerReferences": [{"uid": owner, "controller": True}]}
    metadata |= {"labels": {names.LABEL_JOB_UID: "j", names.LABEL_ATTEMPT: "1"}, **parts}
    return {"metadata": metadata, "spec": {}, "status": {"phase": phase}}


def named(uid: str = "n", version: int = 1, name: str = names.TRAINER_SERVICE_ACCOUNT, **parts: Any) -> Object:
    """A ServiceAccount or RoleBinding."""
    return {"metadata": {**_metadata(uid, version, name), **parts}}


def bundle(content: Bundle, owner: str = "j") -> Object:
    """The ConfigMap of a job's bundle."""
    metadata = {**_metadata("b", 1, names.child_prefix("tickets", owner)), "ownerReferences": [{"uid": owner}]}
    return {"metadata": metadata, "data": {names.BUNDLE_KEY: content.model_dump_json(by_alias=True, exclude_none=True)}}


def profile(uid: str = "f", version: int = 1, name: str = "default", **spec: Any) -> Object:
    """A FineTuneProfile."""
    return {"metadata": _metadata(uid, version, name), "spec": spec}


def _metadata(uid: str, version: int, name: str) -> Object:
    return {
        "namespace": "team",
        "name": name,
        "uid": uid,
        "resourceVersion": str(version),
        "creationTimestamp": CREATED,
    }

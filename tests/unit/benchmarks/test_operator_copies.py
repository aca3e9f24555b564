"""Copies of a FineTuneJob and its children."""

from benchmarks.operator.copies import Original, bare_child_job, parts, renaming

UID, NEW_UID = "0a1b2c3d-0000-4000-8000-000000000001", "9f8e7d6c-0000-4000-8000-000000000002"


def job(namespace: str, name: str, uid: str) -> dict[str, object]:
    return {"metadata": {"namespace": namespace, "name": name, "uid": uid}}


def test_a_copy_has_its_own_names_everywhere() -> None:
    original = Original(job("tenant-a", "exemplar-00000", UID), [], [], [], {}, {})
    rename = renaming(original, job("tenant-b", "resident-00007", NEW_UID))
    child = {
        "metadata": {"namespace": "tenant-a", "name": "exemplar-00000-0a1b2c3d-a1"},
        "data": {"bundle.json": f'{{"name": "exemplar-00000", "uid": "{UID}"}}'},
    }
    assert rename(child) == {
        "metadata": {"namespace": "tenant-b", "name": "resident-00007-9f8e7d6c-a1"},
        "data": {"bundle.json": f'{{"name": "resident-00007", "uid": "{NEW_UID}"}}'},
    }


def test_a_status_is_divided_by_its_writers() -> None:
    ready, validated = {"type": "Ready", "status": "False"}, {"type": "Validated", "status": "True"}
    body = {
        "status": {"state": "Running", "preflight": {"rows": 3}, "conditions": [ready, validated]},
        "metadata": {
            "managedFields": [
                {"manager": "tenant", "operation": "Update", "fieldsV1": {"f:spec": {}}},
                entry("finetune-operator", {"f:state": {}, "f:conditions": {'k:{"type":"Ready"}': {".": {}}}}),
                entry("preflight", {"f:preflight": {}, "f:conditions": {'k:{"type":"Validated"}': {".": {}}}}),
                entry("attempt-1", {}),
            ]
        },
    }
    assert parts(body) == {
        "finetune-operator": {"state": "Running", "conditions": [ready]},
        "preflight": {"preflight": {"rows": 3}, "conditions": [validated]},
        "attempt-1": {},
    }


def test_a_copied_job_has_nothing_that_the_api_server_adds() -> None:
    labels = {"finetune.dev/step": "train", "controller-uid": "x", "batch.kubernetes.io/controller-uid": "x"}
    body = {
        "metadata": {"name": "tickets-a1", "uid": "x", "resourceVersion": "7", "managedFields": [], "labels": labels},
        "spec": {"selector": {"matchLabels": {}}, "template": {"metadata": {"labels": labels}}, "backoffLimit": 0},
        "status": {"active": 1},
    }
    own = {"finetune.dev/step": "train"}
    assert bare_child_job(body) == {
        "metadata": {"name": "tickets-a1", "labels": own},
        "spec": {"template": {"metadata": {"labels": own}}, "backoffLimit": 0},
    }
    assert body["metadata"]["labels"] == labels, "the original stays as it was"


def entry(manager: str, fields: dict[str, object]) -> dict[str, object]:
    return {
        "manager": manager,
        "operation": "Apply",
        "subresource": "status",
        "fieldsV1": {"f:status": fields},
    }

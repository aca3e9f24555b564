"""Every field with a URI, and URIs that it takes or refuses. For the tests of the API server, the CLI and preflight."""

import copy
from typing import Any

JOB: dict[str, Any] = {
    "model": {"uri": "s3://acme-models/base"},
    "dataset": {
        "train": [{"uri": "s3://acme-data/train.jsonl"}],
        "validation": [{"uri": "s3://acme-data/validation.jsonl"}],
        "test": [{"uri": "s3://acme-data/test.jsonl"}],
        "deduplicate": {"near": "Group", "embeddingModel": {"uri": "s3://acme-models/minilm"}},
    },
    "method": {"type": "LoRA", "lora": {"from": "s3://acme-models/adapter"}},
    "evaluation": {
        "regression": [{"name": "old", "uri": "s3://acme-data/old.jsonl", "metric": "ExactMatch", "maxDrop": 0.1}]
    },
    "output": {"uri": "s3://acme-results/tickets"},
}
"""The spec of a job that sets every field with a URI."""
MODEL = ("spec.model.uri",)
ROWS = (
    "spec.dataset.train[0].uri",
    "spec.dataset.validation[0].uri",
    "spec.dataset.test[0].uri",
    "spec.evaluation.regression[0].uri",
)
FOLDERS = ("spec.output.uri", "spec.method.lora.from", "spec.dataset.deduplicate.embeddingModel.uri")
FIELDS = (*MODEL, *ROWS, *FOLDERS)

_RIGHT = {
    "s3://acme-data/some/place": (*MODEL, *FOLDERS),
    "s3://acme-data/some/rows.jsonl": FIELDS,
    "pvc://claim": MODEL,
    "pvc://claim/some/place": (*MODEL, *FOLDERS),
    "pvc://claim/some/rows.jsonl": FIELDS,
    "hf://org/name": MODEL,
    "hf://datasets/org/name/rows.jsonl": ROWS,
}
"""URIs, and the fields that take them."""
_WRONG = (
    "gs://acme-data/rows.jsonl",
    "http://example.com/rows.jsonl",
    "https://acme-data.s3.amazonaws.com/rows.jsonl",
    "file:///data/rows.jsonl",
    "S3://acme-data/rows.jsonl",
    "Hf://datasets/org/name/rows.jsonl",
    "PVC://claim/rows.jsonl",
    "s3a://acme-data/rows.jsonl",
    "s3:acme-data/rows.jsonl",
    "s3:/acme-data/rows.jsonl",
    "s3:///rows.jsonl",
    "s3:",
    "hf:/org/name",
    "hf:org/name",
    "pvc:/claim/rows.jsonl",
    "pvc:///rows.jsonl",
    "gs:/acme-data/rows.jsonl",
)
"""URIs that no field takes: with an unknown scheme, or with a known one that is misspelled."""
TAKEN = [(field, uri) for uri, fields in _RIGHT.items() for field in fields]
REFUSED = [(field, uri) for field in FIELDS for uri in (*_WRONG, *_RIGHT) if (field, uri) not in TAKEN]


def job_with(field: str, uri: str) -> dict[str, Any]:
    """Returns the spec of a job with this URI in this field."""
    spec = copy.deepcopy(JOB)
    place: Any = spec
    *path, last = field.removeprefix("spec.").replace("[0]", ".0").split(".")
    for part in path:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = uri
    return spec


def schemes_of(field: str) -> list[str]:
    """Returns how the URIs begin that a field takes."""
    if field in MODEL:
        return ["s3://BUCKET/PREFIX", "hf://ORG/NAME", "pvc://CLAIM/PATH"]
    return ["s3://BUCKET/KEY", "hf://datasets/", "pvc://CLAIM/PATH"] if field in ROWS else ["s3://", "pvc://CLAIM/PATH"]

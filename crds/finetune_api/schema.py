"""Converts the models into CustomResourceDefinitions with structural schemas, as the API server requires.

pydantic writes JSON Schema 2020-12; a CRD accepts a subset of OpenAPI 3.0. The differences handled here: no `$ref`, no
`anyOf` with null (an optional field is one that may be absent), exclusive bounds as booleans, no titles, and defaults
of nested objects as `{}`, into which the API server then fills the defaults of their fields.
"""

from typing import Any

from finetune_api import names
from finetune_api.model import ApiModel, StatusModel, rules
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.status.job import FineTuneJobStatus

Schema = dict[str, Any]

MAX_NAME_LENGTH = 40
"""With the suffix of a child (-<uid8>-preflight-<pod5>), the name still fits the 63 characters of a label value."""

_NAME_RULES = rules(
    (
        f"self.metadata.name.size() <= {MAX_NAME_LENGTH}",
        f"metadata.name must have at most {MAX_NAME_LENGTH} characters: choose a shorter name",
    ),
    (
        "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name must contain only lower-case letters, digits and hyphens: it becomes part of pod names",
    ),
)

_CONDITION_MESSAGE = '.status.conditions[?(@.type=="Ready")].message'
_JOB_COLUMNS: list[Schema] = [
    {"name": "State", "type": "string", "jsonPath": ".status.state", "description": "State of the job in one word."},
    {"name": "Stage", "type": "string", "jsonPath": ".status.stage", "description": "Current part of the work."},
    {
        "name": "Step",
        "type": "integer",
        "jsonPath": ".status.training.step",
        "description": "Optimizer steps that are done.",
    },
    {
        "name": "Of",
        "type": "integer",
        "jsonPath": ".status.training.totalSteps",
        "description": "Optimizer steps in total.",
    },
    {
        "name": "Baseline",
        "type": "number",
        "jsonPath": ".status.evaluation.decision.baseline",
        "description": "Value of the deciding metric for the best baseline.",
    },
    {
        "name": "Tuned",
        "type": "number",
        "jsonPath": ".status.evaluation.decision.tuned",
        "description": "Value of the deciding metric for the tuned model.",
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {
        "name": "GPU",
        "type": "string",
        "jsonPath": ".status.gpuType.name",
        "description": "GPU type of the attempts.",
        "priority": 1,
    },
    {
        "name": "Message",
        "type": "string",
        "jsonPath": _CONDITION_MESSAGE,
        "description": "Message of the condition Ready.",
        "priority": 1,
    },
    {
        "name": "Output",
        "type": "string",
        "jsonPath": ".spec.output.uri",
        "description": "Folder of the results.",
        "priority": 1,
    },
]
_PROFILE_COLUMNS: list[Schema] = [
    {"name": "Image", "type": "string", "jsonPath": ".spec.trainer.image"},
    {"name": "GPU", "type": "string", "jsonPath": ".spec.gpuTypes[0].name"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]


def job_crd() -> Schema:
    """Return the CustomResourceDefinition of FineTuneJob."""
    root: Schema = {
        "type": "object",
        "description": "A FineTuneJob tunes a language model on your rows, compares it with the base model on held-out "
        "rows, and writes the adapter, a report and a verdict to your bucket.",
        "required": ["spec"],
        "properties": {
            "spec": structural(FineTuneJobSpec),
            "status": {**_without_rules(structural(FineTuneJobStatus)), "default": {"observedGeneration": -1}},
        },
        **_NAME_RULES,
    }
    # The operator lists the jobs that write to the same output.
    further = {"subresources": {"status": {}}, "selectableFields": [{"jsonPath": ".spec.output.uri"}]}
    return _crd(names.JOB_KIND, names.JOBS, ["ftj"], "Namespaced", root, _JOB_COLUMNS, further)


def profile_crd() -> Schema:
    """Return the CustomResourceDefinition of FineTuneProfile."""
    root: Schema = {
        "type": "object",
        "description": "A FineTuneProfile contains the settings of the platform team for all FineTuneJobs that name "
        "it: GPUs, storage and the image of the trainer.",
        "required": ["spec"],
        "properties": {"spec": structural(FineTuneProfileSpec)},
    }
    return _crd(names.PROFILE_KIND, names.PROFILES, ["ftp"], "Cluster", root, _PROFILE_COLUMNS, {})


def _crd(
    kind: str, plural: str, short: list[str], scope: str, root: Schema, columns: list[Schema], further: Schema
) -> Schema:
    """Return a CustomResourceDefinition. `further`: additional keys of the only version."""
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _with_object_fields(root)},
        "additionalPrinterColumns": columns,
        **further,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": short,
                "categories": ["finetune"],
            },
            "scope": scope,
            "versions": [version],
        },
    }


def _with_object_fields(root: Schema) -> Schema:
    meta = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    return {**root, "properties": {**meta, **root["properties"]}}


def structural(model: type[ApiModel] | type[StatusModel]) -> Schema:
    """The model's structural schema, self-contained."""
    document = model.model_json_schema(by_alias=True)
    definitions = document.pop("$defs", {})
    return _structural(document, definitions)


def _without_rules(node: Schema) -> Schema:
    """Return the schema without CEL rules.

    A status repeats what a spec contained, perhaps from before a rule existed. The job must still end."""
    inside = {
        key: _without_rules(node[key]) for key in ("items", "additionalProperties") if isinstance(node.get(key), dict)
    }
    if "properties" in node:
        inside["properties"] = {name: _without_rules(child) for name, child in node["properties"].items()}
    return {key: value for key, value in {**node, **inside}.items() if key != "x-kubernetes-validations"}


def _structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """`node` with references put in place and what a CRD does not know translated."""
    node = dict(node)
    if "anyOf" in node:
        (branch,) = [b for b in node.pop("anyOf") if b.get("type") != "null"]
        node = {**branch, **node}
    if "$ref" in node:
        target = definitions[node.pop("$ref").rsplit("/", 1)[1]]
        node = {**target, **node}  # the field's own description and default win over the type's
    for key in ("title", "$defs"):
        node.pop(key, None)
    node = _translate(node)
    if "properties" in node:
        # A CRD forbids additionalProperties beside properties: unknown fields are pruned or refused anyway.
        node.pop("additionalProperties", None)
        node["properties"] = {name: _structural(child, definitions) for name, child in node["properties"].items()}
    elif isinstance(node.get("additionalProperties"), dict):
        node["additionalProperties"] = _structural(node["additionalProperties"], definitions)
    if "items" in node:
        node["items"] = _structural(node["items"], definitions)
    return node


def _translate(node: Schema) -> Schema:
    if "description" in node:
        node["description"] = " ".join(node["description"].split())
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if node.get("default", ...) is None:
        del node["default"]
    if isinstance(node.get("default"), dict):
        node["default"] = {}
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in node:
            node[bound], node[exclusive] = node[exclusive], True
    if node.get("type") == "integer":
        node["format"] = "int64"
    if isinstance(node.get("additionalProperties"), dict) and "maxLength" in node:
        node["maxProperties"] = node.pop("maxLength")
    return node

"""docs/messages.md: every message a user can meet, with its remedy.

The messages of a failure are listed under its reason and the remedy of that reason. Other messages are listed under
their part of the code."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune_api.reasons import AGAIN, FAILURES, FailureReason
from messages_source import Message, messages_of

PARTS = {
    "operator/finetune_operator": "The operator: conditions of a FineTuneJob and its log",
    "trainer_image/finetune_trainer/sources": "Preflight: data files that cannot be read",
    "trainer_image/finetune_trainer/rows": "Preflight: rows that cannot be used or look wrong",
    "trainer_image/finetune_trainer/base": "Preflight: the base model's folder",
    "trainer_image/finetune_trainer/preflight": "Preflight: the data as a whole, and advice",
    "trainer_image/finetune_trainer/training": "Training",
    "trainer_image/finetune_trainer/evaluation": "Evaluation: the verdict and its basis",
    "trainer_image/finetune_trainer/results": "The report and the model card",
    "trainer_image/finetune_trainer": "The trainer: elsewhere",
    "crds/finetune_api/conflicts": "Locations that conflict: all parts",
    "crds/finetune_api/bundle": "Settings that the FineTuneProfile does not offer: the operator and the trainer",
    "cli/finetune_cli": "The command line",
}
"""Folders and modules that are read, each before its parent folder, and the heading of their messages."""


def messages_text(root: Path, crds: Sequence[dict[str, Any]]) -> str:
    """Return the page, from the source below `root` and the rules of the CRDs."""
    by_reason: dict[FailureReason, list[Message]] = defaultdict(list)
    by_part: dict[str, list[Message]] = defaultdict(list)
    for message in _messages(root):
        if message.reason:
            by_reason[message.reason].append(message)
        elif part := next((part for part in PARTS if message.module.startswith(_module_of(part))), None):
            by_part[part].append(message)
    lines = [
        "# Messages",
        "",
        "Every message a user can meet, with its remedy. Generated from the source by `make generate`.",
        "",
        "- A name in braces stands for a value. If the value is one of several texts, they are below the message.",
        "- Text in square brackets is not always part of the message.",
        "- A failure shows its message and the remedy of its reason. If \u2192 and a remedy follow the message,",
        f'  they are shown with "{AGAIN}" in place of that remedy.',
        "",
        "## The API server, when a manifest is applied",
        "",
        *[f"- `{path}`: {text}" for crd in crds for path, text in _rules(crd)],
        "",
        "## Failures, by reason",
        "",
    ]
    for reason, failure in FAILURES.items():
        lines += [f"### {reason}", "", f"Who acts: {failure.actor}. Remedy: {failure.remedy}", ""]
        lines += [*_bullets(by_reason[reason]), ""] if by_reason[reason] else []
    for part, heading in PARTS.items():
        if by_part[part]:
            lines += [f"## {heading}", "", *_bullets(by_part[part]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _rules(crd: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the message of each rule with its field."""
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    def below(path: str, node: dict[str, Any]) -> Iterator[tuple[str, str]]:
        for rule in node.get("x-kubernetes-validations", []):
            yield path, rule["message"]
        for name, child in node.get("properties", {}).items():
            yield from below(f"{path}.{name}", child)
        if "items" in node:
            yield from below(f"{path}[]", node["items"])

    return below(crd["spec"]["names"]["kind"], schema)


def _module_of(part: str) -> str:
    return part.partition("/")[2].replace("/", ".")


def _bullets(messages: list[Message]) -> list[str]:
    return [line for message in messages for line in _bullet(message)]


def _bullet(message: Message) -> Iterator[str]:
    remedy = f" \u2192 {message.remedy}" if message.remedy else ""
    yield f"- {message.text}{remedy} (`{message.module}`)"
    for name, text in message.parts:
        yield f'  - {{{name}}}: "{text}"'


def _messages(root: Path) -> list[Message]:
    folders = dict.fromkeys(part.split("/")[0] for part in PARTS)
    return sorted(
        set(messages_of(root / folder for folder in folders)),
        key=lambda message: (message.module, message.text, message.remedy),
    )

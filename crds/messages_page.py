"""docs/messages.md: every message a user can meet, read from the source, with its remedy.

A message is a string of several words that is neither a docstring nor a pattern. If a call names a failure reason, its
messages are listed under that reason and its remedy. Other messages are listed under their part of the code."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.reasons import FAILURES, FailureReason

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
    "cli/finetune_cli": "The command line",
}
"""Folders that are read, each before its parent folder, and the heading of their messages."""
WORDS = 3
"""A string with fewer words is a name, a key or a part of a sentence."""
NO_MESSAGE = re.compile(r"\\[a-z(\[]|^[a-z_.]+=|^\s*<|^[\w.]+/[\w.]+|%\(|^\$|^https?:")
"""Patterns, markup, paths, formats."""


@dataclass(frozen=True, order=True)
class Message:
    """Template of a message, with placeholders in braces."""

    text: str
    module: str
    reason: FailureReason | None = None


def messages_text(root: Path, crds: Sequence[dict[str, Any]]) -> str:
    """Return the page, from the source below `root` and the rules of the CRDs."""
    by_reason: dict[FailureReason, list[Message]] = defaultdict(list)
    by_part: dict[str, list[Message]] = defaultdict(list)
    for message in sorted(set(_messages(root)), key=lambda message: (message.module, message.text)):
        if message.reason:
            by_reason[message.reason].append(message)
        else:
            part = next(part for part in PARTS if message.module.startswith(part.partition("/")[2].replace("/", ".")))
            by_part[part].append(message)
    lines = [
        "# Messages",
        "",
        "Every message a user can meet, with its remedy. Generated from the source by `make generate`; a name in",
        "braces stands for a value that is filled in. After the message of a failure comes the remedy of its reason.",
        'If the message ends with its own remedy, "Then create the job again." comes after it instead.',
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


def _bullets(messages: list[Message]) -> list[str]:
    return [f"- {message.text} (`{message.module}`)" for message in messages]


def _messages(root: Path) -> Iterator[Message]:
    for folder in {part.split("/")[0] for part in PARTS}:
        for path in sorted((root / folder).rglob("*.py")):
            module = ".".join(path.relative_to(root / folder).with_suffix("").parts)
            yield from _of_module(ast.parse(path.read_text()), module)


def _of_module(tree: ast.Module, module: str) -> Iterator[Message]:
    _link(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.Constant) and _stands_alone(node):
            text = _template(node)
            shown = " ".join(text.split())
            if len(text.split()) >= WORDS and shown.isprintable() and not NO_MESSAGE.search(text):
                yield Message(shown, module, _reason(node))


def _link(tree: ast.AST) -> None:
    """Set the parent of each node."""
    for parent in ast.walk(tree):
        for child in ast.iter_child_nodes(parent):
            child.parent = parent  # type: ignore[attr-defined]


def _stands_alone(node: ast.expr) -> bool:
    """Whether a string is neither a docstring nor a part of a longer string."""
    parent = node.parent  # type: ignore[attr-defined]
    return not isinstance(parent, ast.Expr | ast.JoinedStr | ast.FormattedValue)


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    assert isinstance(node, ast.JoinedStr)
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else f"{{{_name(part)}}}"
        for part in node.values
        if isinstance(part, ast.Constant | ast.FormattedValue)
    )


def _name(part: ast.FormattedValue) -> str:
    """Return the name of a placeholder: the last name in its expression."""
    names = [each.attr if isinstance(each, ast.Attribute) else each.id for each in _named(part.value)]
    return names[-1].replace("_", " ").strip() if names else "…"


def _named(node: ast.AST) -> list[ast.Attribute | ast.Name]:
    """Return the names in an expression, a function's name before its arguments."""
    if isinstance(node, ast.Attribute):
        return [node]
    own: list[ast.Attribute | ast.Name] = [node] if isinstance(node, ast.Name) else []
    return own + [name for child in ast.iter_child_nodes(node) for name in _named(child)]


def _reason(node: ast.expr) -> FailureReason | None:
    """Return the reason of the call that receives a message, directly or through a variable of the same function."""
    call, child = node.parent, node  # type: ignore[attr-defined]
    while not isinstance(call, ast.stmt):
        if isinstance(call, ast.Call) and child is not call.func and (found := _reason_in(call)):
            return found
        call, child = call.parent, call  # type: ignore[attr-defined]
    if isinstance(call, ast.Assign | ast.AugAssign):
        targets = call.targets if isinstance(call, ast.Assign) else [call.target]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        return next((found for use in _uses(call, names) if (found := _reason_in(use))), None)
    return None


def _reason_in(call: ast.Call) -> FailureReason | None:
    for argument in call.args:
        if (
            isinstance(argument, ast.Attribute)
            and isinstance(argument.value, ast.Name)
            and argument.value.id == "FailureReason"
        ):
            return FailureReason[argument.attr]
    return None


def _uses(statement: ast.stmt, names: set[str]) -> Iterator[ast.Call]:
    """Yield the calls in the same function that receive one of the variables."""
    scope: ast.AST = statement
    while not isinstance(scope, ast.FunctionDef | ast.Module):
        scope = scope.parent  # type: ignore[attr-defined]
    for node in ast.walk(scope):
        if isinstance(node, ast.Call) and any(
            isinstance(inner, ast.Name) and inner.id in names for argument in node.args for inner in ast.walk(argument)
        ):
            yield node

"""Writes the generated files: the CRDs, their copy in the chart and docs/api.md from the models, and docs/messages.md
from the source.

`make generate` runs it; `make verify` runs it with --check, which writes nothing and fails on a difference.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from finetune_api.reasons import FAILURES
from finetune_api.schema import job_crd, profile_crd
from messages_page import messages_text

ROOT = Path(__file__).parents[1]
HEADER = "# Generated from crds/finetune_api by `make generate`; edit the models, not this file.\n"


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def crd_text(crd: dict[str, Any]) -> str:
    return HEADER + yaml.dump(crd, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def reference_text(crds: list[dict[str, Any]]) -> str:
    """Return docs/api.md: every field of every kind with its type, default and bounds, then the failure reasons."""
    lines = ["# API reference", "", "Generated from `crds/finetune_api` by `make generate`.", ""]
    for crd in crds:
        root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        lines += [f"## {crd['spec']['names']['kind']}", "", root["description"], ""]
        for part in ("spec", "status"):
            if part in root["properties"]:
                lines += ["| field | type | default | |", "| --- | --- | --- | --- |"]
                lines += [*_rows(part, root["properties"][part], required=part == "spec"), ""]
    lines += ["## Failure reasons", "", "[recovery.md](recovery.md) describes the retries.", ""]
    lines += ["| reason | exit code | retry | who acts | what to do |", "| --- | --- | --- | --- | --- |"]
    for reason, failure in FAILURES.items():
        retry = f"{failure.retry}. {failure.change}".removesuffix(". ")
        lines.append(f"| `{reason}` | {failure.exit_code or ''} | {retry} | {failure.actor} | {failure.remedy} |")
    return "\n".join(lines) + "\n"


def _rows(path: str, node: dict[str, Any], required: bool) -> list[str]:
    default = node.get("default")
    shown = "" if default in (None, {}) else f"`{default}`".replace("True", "true").replace("False", "false")
    text = " ".join(node.get("description", "").split()).replace("|", "\\|")
    rows = [f"| `{path}` | {_type(node)} | {'required' if required else shown} | {text} |"]
    inner = node.get("items", node)
    suffix = "[]" if "items" in node else ""
    for name, child in inner.get("properties", {}).items():
        rows += _rows(f"{path}{suffix}.{name}", child, name in inner.get("required", []))
    return rows


def _type(node: dict[str, Any]) -> str:
    if "enum" in node:
        return " \\| ".join(map(str, node["enum"]))
    if node["type"] == "array":
        return f"list of {_type(node['items'])}"
    bounds = [
        sign + ("" if node.get(f"exclusive{bound.capitalize()}") else "=") + f" {node[bound]}"
        for bound, sign in (("minimum", ">"), ("maximum", "<"))
        if bound in node
    ]
    return " ".join([node["type"], ", ".join(bounds)]).strip()


def outputs() -> dict[Path, str]:
    crds = [job_crd(), profile_crd()]
    files = {ROOT / "docs" / "api.md": reference_text(crds), ROOT / "docs" / "messages.md": messages_text(ROOT, crds)}
    for crd in crds:
        name = f"finetune.dev_{crd['spec']['names']['plural']}.yaml"
        files[ROOT / "crds" / name] = files[ROOT / "charts" / "finetune-operator" / "crds" / name] = crd_text(crd)
    return files


def main(check: bool) -> int:
    stale = [path for path, text in outputs().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(outputs()[path])
        print(f"{'differs from the models' if check else 'wrote'}: {path.relative_to(ROOT)}")
    if check and stale:
        print("Run `make generate` and commit the result.")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))

"""Fetches the job's files from S3, compares base and tuned model, and shows one ticket with both answers."""

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from devcluster import ClusterError
from examples.demo.store import Store, sha256
from finetune_api.status.evaluation import Evaluation, Metrics
from finetune_api.status.job import Artifacts

ADAPTER, REPORT, SAMPLES = "adapter", "report.html", "samples.jsonl"
Sample = dict[str, Any]
"""A line of samples.jsonl: {prompt, expected, base: {answer, matches}, tuned: {answer, matches}}."""


def fetch(store: Store, artifacts: Artifacts, folder: Path) -> None:
    """Downloads manifest.json and all files that it lists to `folder`. Deletes the files of an earlier fetch first.

    Raises ClusterError if a file's sha256 differs from the manifest, or the manifest's sha256 from the status."""
    remove(folder)
    manifest = store.read(artifacts.manifest)
    _check(artifacts.manifest, manifest, artifacts.digest)
    prefix = artifacts.manifest.rpartition("/")[0]
    for file in json.loads(manifest)["files"]:
        uri, path = f"{prefix}/{file['path']}", folder / PurePosixPath(file["path"])
        data = store.read(uri)
        _check(uri, data, file["sha256"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "manifest.json").write_bytes(manifest)


def remove(folder: Path) -> None:
    """Deletes the files that `fetch` writes."""
    shutil.rmtree(folder / ADAPTER, ignore_errors=True)
    for name in (REPORT, SAMPLES, "manifest.json"):
        (folder / name).unlink(missing_ok=True)


def _check(uri: str, data: bytes, expected: str) -> None:
    if sha256(data) != expected:
        raise ClusterError(f"{uri} is damaged. Its sha256 is {sha256(data)}, but {expected} was expected.")


FORMATS = {"loss": ".3f", "perplexity": ",.2f", "truncated": ","}


def comparison(evaluation: Evaluation) -> Table:
    """Returns a table of all measured metrics of all models."""
    models = {"base": evaluation.base, "few-shot": evaluation.few_shot, "tuned": evaluation.tuned}
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"{evaluation.rows} held-out rows", min_width=18)
    for name, metrics in models.items():
        if metrics:
            table.add_column(name, justify="right", style="bold" if name == "tuned" else "")
    for field in Metrics.model_fields:
        values = [getattr(metrics, field) for metrics in models.values() if metrics]
        if any(value is not None for value in values):
            table.add_row(field.replace("_", " "), *(_number(value, FORMATS.get(field, ".1%")) for value in values))
    return table


def telling_sample(samples: list[Sample]) -> Sample | None:
    """Returns a row that only the tuned model answers correctly, or else the first row. None without rows."""
    return next((s for s in samples if s["tuned"]["matches"] and not s["base"]["matches"]), next(iter(samples), None))


def read_samples(folder: Path) -> list[Sample]:
    """Reads the held-out rows with both models' answers from the files of `fetch`."""
    return [json.loads(line) for line in (folder / SAMPLES).read_text().splitlines()]


def show_sample(console: Console, sample: Sample) -> None:
    """Prints the prompt, the expected answer and both models' answers of one row."""
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=10)
    table.add_column(overflow="fold")
    table.add_row("[dim]prompt[/]", escape(sample["prompt"]))
    table.add_row("[dim]expected[/]", escape(sample["expected"]))
    for model in ("base", "tuned"):
        mark = "[green]✓[/]" if sample[model]["matches"] else "[red]✗[/]"
        table.add_row(f"[dim]{model}[/] {mark}", escape(sample[model]["answer"].strip()))
    console.print(Padding.indent(table, 2))


def _number(value: float | None, format: str) -> str:
    return "-" if value is None else f"{value:{format}}"

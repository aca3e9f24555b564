"""Runs the demo from its first step to its last."""

import json
import time
from collections.abc import Callable
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from devcluster import ClusterError
from devcluster.progress import step
from examples.demo import results
from examples.demo.failure import failing_log, operator_log
from examples.demo.install import prepare_tenant
from examples.demo.store import Store
from examples.demo.target import FOLDER, JOB, NAMESPACE, ROOT, Target
from examples.demo.view import clock, follow
from examples.demo.watch import changes
from examples.model.convert import NAME as MODEL
from examples.model.convert import model_folder
from examples.tickets.generate import tickets
from finetune_api.status.evaluation import Evaluation
from finetune_api.status.job import Artifacts, ConditionType, FineTuneJobStatus, State

MANIFEST = ROOT / "examples" / "tickets" / "finetunejob.yaml"
RESOURCE = "finetunejob.json"
ROWS, SEED = 480, 0
"""A fifth of the rows is held out. One epoch of the others takes two to three minutes on two cores."""


def run(bring_up: Callable[[], Target], console: Console) -> int:
    """Runs the whole demo on the cluster that `bring_up` returns, in which the operator is installed.

    Returns the exit status. Raises ClusterError if the cluster fails. A failed job is no error of the cluster."""
    started = time.monotonic()
    FOLDER.mkdir(parents=True, exist_ok=True)
    _remove_results()
    console.print("[bold]1. Start a cluster with the operator[/]")
    target = bring_up()
    console.print("[bold]2. Create a tenant with a model and rows in S3[/]")
    store = Store(target)
    job = _prepare(target, store)
    console.print("[bold]3. Run kubectl apply[/]")
    console.print(escape(_indented(yaml.safe_dump(job, sort_keys=False))), soft_wrap=True)
    target.tenant("apply", "-f", "-", input=json.dumps(job))
    try:
        follow(changes(target), console)
    except ClusterError as error:
        raise ClusterError(f"{error}\n{operator_log(target)}") from error
    resource = target.tenant("get", "finetunejob", JOB, "--output=json")
    (FOLDER / RESOURCE).write_text(resource)
    status = FineTuneJobStatus.model_validate(json.loads(resource)["status"])
    if status.state is State.FAILED or status.artifacts is None or status.evaluation is None:
        return _report_failure(console, target, status)
    with step("downloading the results and checking them with manifest.json"):
        results.fetch(store, status.artifacts, FOLDER)
    console.print(f"[bold]4. See the results[/], {clock(time.monotonic() - started)} after the start")
    _report(console, target, status.artifacts, status.evaluation)
    return 0


def _prepare(target: Target, store: Store) -> dict[str, Any]:
    """Creates the namespace, deletes an earlier demo's job, and uploads model and rows. Returns the job to apply."""
    job: dict[str, Any] = yaml.safe_load(target.in_bucket(MANIFEST.read_text()))
    spec = job["spec"]
    with step(f"preparing the namespace {NAMESPACE}"):
        prepare_tenant(target)
        target.tenant("delete", "finetunejob", JOB, "--ignore-not-found", "--cascade=foreground", "--timeout=120s")
    folder = model_folder()
    with step(f"uploading {MODEL} to S3"):
        store.make_bucket(spec["model"]["uri"])
        store.upload_folder(folder, spec["model"]["uri"])
    rows = spec["dataset"]["train"][0]["uri"].replace("*.jsonl", "tickets.jsonl")
    with step(f"uploading {ROWS} rows to S3"):
        store.make_bucket(rows)
        store.write(rows, "".join(json.dumps(row) + "\n" for row in tickets(ROWS, SEED)).encode())
        store.make_bucket(spec["output"]["uri"])
        spec["output"]["uri"] = store.free_prefix(spec["output"]["uri"])
    return job


def _report_failure(console: Console, target: Target, status: FineTuneJobStatus) -> int:
    failed = status.condition(ConditionType.FAILED)
    reason, message = (failed.reason, failed.message) if failed else ("Failed", "")
    console.print(f"\n[red]{reason}:[/] {escape(message)}", soft_wrap=True)
    console.print(escape(failing_log(target, status)), soft_wrap=True)
    console.print("Inspect the job with `make demo-shell`. Delete everything with `make demo-down`.")
    return 1


def _report(console: Console, target: Target, artifacts: Artifacts, evaluation: Evaluation) -> None:
    console.print("$ kubectl get ftj", style="dim")
    console.print(escape(target.tenant("get", "finetunejobs").rstrip()), soft_wrap=True)
    console.print(f"\n{escape(evaluation.verdict or '')}")
    console.print(Padding.indent(results.comparison(evaluation), 1))
    sample = results.telling_sample(results.read_samples(FOLDER))
    if sample:
        console.print("[bold]One held-out row with both models' answers[/]")
        results.show_sample(console, sample)
    folder = FOLDER.relative_to(ROOT)
    console.print(
        f"""
  results    {artifacts.manifest.rpartition("/")[0]}
  here       {folder}/{results.ADAPTER}/ {folder}/{results.REPORT} {folder}/{RESOURCE}

  make demo-shell   open a shell with kubectl, helm and s3
  make demo-down    delete everything""",
        soft_wrap=True,
    )


def _remove_results() -> None:
    """Deletes an earlier demo's results, so that nobody mistakes them for results of a failed demo."""
    results.remove(FOLDER)
    (FOLDER / RESOURCE).unlink(missing_ok=True)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines())

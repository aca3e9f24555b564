"""Runs `make demo` on the tests' cluster. A real model is trained; in full, that proves the demo's claims."""

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from devcluster import Cluster, ClusterError
from examples.demo import results, s3
from examples.demo import run as module
from examples.demo.install import install_operator
from examples.demo.run import RESOURCE, run
from examples.demo.store import Store
from examples.demo.target import FOLDER, Target, local_target
from finetune_api.status.job import FineTuneJobStatus


@pytest.fixture
def target(installed: Cluster) -> Target:
    return local_target(installed)


def with_operator(target: Target) -> Target:
    """Installs over the tests' own release, as a second `make demo` installs over the first."""
    install_operator(target, FOLDER / "values.json")
    return target


def demonstrate(target: Target) -> tuple[str, FineTuneJobStatus]:
    """Runs the demo. Returns what it prints, and the status of its job."""
    screen = io.StringIO()

    code = run(lambda: with_operator(target), Console(file=screen, width=80))

    assert code == 0, screen.getvalue()
    return screen.getvalue(), FineTuneJobStatus.model_validate(json.loads((FOLDER / RESOURCE).read_text())["status"])


@pytest.mark.soak
@pytest.mark.timeout(1500)  # three minutes of training on two idle cores
def test_the_demo_publishes_an_adapter_that_answers_better_than_its_base_model(target: Target) -> None:
    _, status = demonstrate(target)

    assert status.evaluation
    assert status.evaluation.base
    assert status.evaluation.tuned
    assert status.evaluation.rows == 96
    assert status.evaluation.base.exact_match == 0
    assert status.evaluation.tuned.exact_match is not None
    # Measured: 0.78 and more. The margin is for other processors, because their bf16 sums differ.
    assert status.evaluation.tuned.exact_match > 0.6


@pytest.mark.thorough
def test_a_demo_of_a_few_steps_shows_how_the_job_goes_and_keeps_its_results(
    target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = yaml.safe_load(module.MANIFEST.read_text())
    job["spec"] |= {"training": {"maxSteps": 2}, "evaluation": {"maxRows": 8}}
    (tmp_path / "finetunejob.yaml").write_text(yaml.safe_dump(job))
    monkeypatch.setattr(module, "MANIFEST", tmp_path / "finetunejob.yaml")

    screen, status = demonstrate(target)

    assert (FOLDER / results.ADAPTER / "adapter_model.safetensors").stat().st_size > 1_000_000
    assert (FOLDER / results.REPORT).read_text().startswith("<!")
    assert "NAME      STATE      STAGE" in screen
    assert max(map(len, screen.splitlines())) <= 120

    store = Store(target)
    assert store.free_prefix("s3://acme-results/tickets") == "s3://acme-results/tickets-2"
    store.write("s3://acme-results/tickets/report.html", b"damaged")
    assert status.artifacts
    with pytest.raises(ClusterError, match=r"report\.html is damaged"):
        results.fetch(store, status.artifacts, FOLDER)


def test_the_shells_s3_uploads_rows_and_downloads_a_folder(target: Target, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    store = Store(target)

    s3.upload(store, tmp_path / "rows.jsonl", "s3://acme-own/mine/")
    s3.download(store, "s3://acme-own/mine/", tmp_path / "back")

    assert (tmp_path / "back" / "rows.jsonl").read_bytes() == (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(ClusterError, match="There are no objects under s3://acme-own/other/"):
        s3.download(store, "s3://acme-own/other/", tmp_path)

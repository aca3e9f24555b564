"""Jobs with volumes, as their pods run: not as root, with each volume mounted as the manifest says."""

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.decisions.objects import children
from finetune_operator.observed.facts.claims import Claim
from finetune_operator.observed.facts.pods import Object
from tests.integration.finetune_trainer.as_the_pod_runs.inputs import write_all
from tests.integration.finetune_trainer.as_the_pod_runs.pod import DATA, PROFILE, Ended, Pods, world_of

CACHE = "model-cache"
SETTINGS = {"claims": {"allowed": ["models", "rows", "results"]}, "modelCache": {"claimName": CACHE}}
SHORT = {"training": {"maxSteps": 1}, "evaluation": {"maxRows": 4, "baselines": ["Base"]}}


def job(model: str, rows: str, output: str) -> dict[str, Any]:
    """The spec of a job with these URIs."""
    return {"model": {"uri": model}, "dataset": {"train": [{"uri": rows}]}, "output": {"uri": output}}


class PodsWithVolumes(Pods):
    """Pods that mount a folder of `volumes` for each claim. The containers of a pod share its scratch folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._profile = FineTuneProfileSpec.model_validate(PROFILE | SETTINGS)
        self.volumes, self._scratch = folder / "volumes", folder / "scratch"
        for name in ("models", "rows", "results", CACHE):
            (self.volumes / name).mkdir(parents=True)
            (self.volumes / name).chmod(0o777)

    def fetch_and_train(self, spec: dict[str, Any]) -> tuple[str, Ended]:
        """The first attempt at a job: the log of the container that fetches its model, and how the trainer ended."""
        wish = FineTuneJobSpec.model_validate(spec)
        world = replace(world_of(wish), claims={CACHE: Claim("Bound", ("ReadWriteMany",), "pv")})
        attempt = children.attempt_job(world, wish, self._profile, children.Try(1, self._profile.gpu_types[0]))
        shutil.rmtree(self._scratch, ignore_errors=True)
        (fetcher,) = attempt["spec"]["template"]["spec"].pop("initContainers")
        fetching = deepcopy(attempt)
        fetching["spec"]["template"]["spec"]["containers"] = [fetcher]
        fetched = self._run(fetching, wish)
        assert fetched.code == 0, fetched.log
        return fetched.log, self._run(attempt, wish)

    def _script(self, pod: Object, *arguments: Any) -> str:
        """Binds folders where the other pods have empty ones."""
        script = super()._script(pod, *arguments)
        self._scratch.mkdir(exist_ok=True)
        self._scratch.chmod(0o777)
        (container,) = pod["containers"]
        mounted = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in mounted}
        for mount in container["volumeMounts"]:
            if mount["mountPath"] == names.SCRATCH_FOLDER:
                source = self._scratch
            elif mount["name"] in claims:
                source = self.volumes / claims[mount["name"]]
            else:
                continue
            place = f"{self._folder / 'root'}{mount['mountPath']}"
            bound = f"mount --bind {source} {place}"
            if mount.get("readOnly"):
                bound += f"\nmount -o remount,bind,ro {place}"
            empty = f"mount -t tmpfs -o mode=1777 none {place}"
            assert empty in script
            script = script.replace(f"{empty}\n", f"{bound}\n")
        return script


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> PodsWithVolumes:
    found = PodsWithVolumes(tmp_path_factory.mktemp("pods"))
    write_all(found.data)
    shutil.copytree(found.data / "base", found.volumes / "models" / "base")
    (found.volumes / "models" / "base" / "model.safetensors").chmod(0o644)  # save_pretrained lets only its user read it
    shutil.copy(found.data / "sums.jsonl", found.volumes / "rows")
    return found


def test_a_job_reads_its_volumes_and_publishes_into_one(pods: PodsWithVolumes) -> None:
    spec = job("pvc://models/base", "pvc://rows/*.jsonl", "pvc://results/team/run") | SHORT
    checked = pods.preflight(spec)
    assert checked.code == 0, checked.log
    trained = pods.train(spec)
    assert trained.code == 0, trained.log
    folder = pods.volumes / "results" / "team" / "run"
    assert {path.name for path in folder.iterdir()} == {"adapter", "manifest.json", "report.html", "samples.jsonl"}
    assert "Traceback" not in checked.log + trained.log


def test_a_folder_in_which_the_user_may_not_write_is_told_by_the_preflight(pods: PodsWithVolumes) -> None:
    (pods.volumes / "results" / "closed").mkdir(mode=0o755)
    spec = job("pvc://models/base", "pvc://rows/*.jsonl", "pvc://results/closed/run")
    ended = pods.preflight(spec)
    assert ended.message.reason is FailureReason.OUTPUT_NOT_WRITABLE, ended.log
    assert "does not allow user 65532 of the pod to use pvc://results/closed/run" in ended.message.message


def test_rows_that_the_user_may_not_read_are_told_by_the_preflight(pods: PodsWithVolumes) -> None:
    secret = pods.volumes / "rows" / "secret"
    secret.mkdir()
    shutil.copy(pods.data / "sums.jsonl", secret)
    (secret / "sums.jsonl").chmod(0o600)
    spec = job("pvc://models/base", "pvc://rows/secret/*.jsonl", "pvc://results/secret")
    ended = pods.preflight(spec)
    shutil.rmtree(secret)
    assert ended.message.reason is FailureReason.STORAGE_ACCESS_DENIED, ended.log
    assert "Give this user, or the group 65532, the permission" in ended.message.message


def test_the_second_attempt_takes_its_model_from_the_cache(pods: PodsWithVolumes) -> None:
    for name, told in (("first", "because the cache did not have it"), ("second", "came from the cache")):
        spec = job(f"{DATA}/base", f"{DATA}/sums.jsonl", f"{DATA}/out/{name}") | SHORT
        assert pods.preflight(spec).code == 0
        log, trained = pods.fetch_and_train(spec)
        assert trained.code == 0, trained.log
        assert told in log
        assert told in trained.log
        assert "Traceback" not in log + trained.log
    assert trained.status.training
    assert trained.status.training.model_seconds is not None
    assert trained.status.training.model_seconds < 2


@pytest.mark.thorough
def test_a_cache_that_cannot_be_written_costs_only_the_download(pods: PodsWithVolumes) -> None:
    shutil.rmtree(pods.volumes / CACHE / "entries", ignore_errors=True)
    shutil.rmtree(pods.volumes / CACHE / "partial", ignore_errors=True)
    (pods.volumes / CACHE).chmod(0o755)
    spec = job(f"{DATA}/base", f"{DATA}/sums.jsonl", f"{DATA}/out/unwritable") | SHORT
    assert pods.preflight(spec).code == 0
    log, trained = pods.fetch_and_train(spec)
    assert trained.code == 0, trained.log
    assert "could not be written to the cache" in log
    assert "was downloaded" in trained.log

"""What the chart and the images say of the contract agrees with the contract: it is written down in both."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from finetune_api import names
from finetune_api.status.job import ConditionType, FineTuneJobStatus
from finetune_operator.process import supervise

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "finetune-operator"
POLICY = (CHART / "templates" / "trainer-policy.yaml").read_text()


def quoted_lists(variable: str) -> set[str]:
    """Every name in the lists of a policy's variable."""
    expression = POLICY.split(f"- name: {variable}\n")[1].split("- name:")[0]
    return {name for found in re.findall(r"\[('[^\]]*)\]", expression) for name in re.findall(r"'(\w+)'", found)}


def test_the_policy_names_fields_and_conditions_a_status_has() -> None:
    fields = {field.alias for field in FineTuneJobStatus.model_fields.values()}
    assert quoted_lists("ownFields") == {"preflight", "resolved", "training", "evaluation", "artifacts"} <= fields
    assert quoted_lists("ownConditions") == {
        ConditionType.VALIDATED,
        ConditionType.TRAINED,
        ConditionType.EVALUATED,
    }


@pytest.mark.parametrize("length", [1, 38, 39, 40])
def test_the_policy_knows_the_preflight_pod_of_a_job_with_the_longest_name(length: int) -> None:
    name, uid = "j" * length, "0123abcd-0000-0000-0000-000000000000"
    # k8s.io/apiserver/pkg/storage/names: 63 characters at most, of which five are random.
    pod = f"{names.preflight_name(name, uid)}-"[:58] + "x7k2p"
    assert "startsWith('prefligh')" in POLICY
    assert pod.removeprefix(f"{names.child_prefix(name, uid)}-").startswith("prefligh")


def test_the_operators_pod_gets_more_time_to_end_than_its_process_takes() -> None:
    grace = re.search(r"terminationGracePeriodSeconds: (\d+)", (CHART / "templates" / "deployment.yaml").read_text())
    assert grace
    assert int(grace[1]) > supervise.DEADLINE_SECONDS + supervise.LAST_RESORT_SECONDS


def test_the_trainers_role_has_the_name_the_operator_binds() -> None:
    role = (CHART / "templates" / "trainer-rbac.yaml").read_text()
    assert f"\n  name: {names.TRAINER_SERVICE_ACCOUNT}\n" in role
    assert f"resourceNames: [{names.TRAINER_SERVICE_ACCOUNT}]" in (CHART / "templates" / "_rbac.tpl").read_text()


def test_chart_application_and_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == package["version"]


@pytest.mark.parametrize("lock", ["build", "operator", "trainer"])
def test_an_image_installs_the_versions_that_were_tested(lock: str) -> None:
    tested, installed = locked("dev"), locked(lock)
    assert installed
    assert {name: version for name, version in installed.items() if tested.get(name, version) != version} == {}
    text = (ROOT / "locks" / f"{lock}.txt").read_text()
    assert "://" not in text, "a lock names no index: it has to install from any mirror"
    assert text.count("--hash=sha256:") >= len(installed)


def locked(lock: str) -> dict[str, str]:
    """Versions by package of a lock file."""
    text = (ROOT / "locks" / f"{lock}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9_.-]+)==([^ ]+)", text, re.MULTILINE))


@pytest.mark.parametrize("dockerfile", ["Dockerfile.operator", "Dockerfile.trainer"])
def test_what_an_image_copies_is_there_and_reaches_the_build(dockerfile: str) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / dockerfile).read_text(), re.MULTILINE)
    sources = [source for copy in copies for source in copy.split()]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert any(fnmatch(source, pattern) for pattern in allowed), f".dockerignore keeps {source} from the build"

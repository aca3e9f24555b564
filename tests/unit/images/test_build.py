"""images/build.py chooses the builder that is there and hands the environment's mirror on. The builders are stand-ins
that write down how they were called: the real ones run in tests/e2e/images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "images" / "build.py"


class Builders:
    """A PATH with nothing but the stand-ins a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "calls"

    def add(self, name: str, body: str = "") -> None:
        program = self.folder / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{body}\n')
        program.chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
        return subprocess.run(
            [sys.executable, str(SCRIPT), *arguments],
            env=kept | {"PATH": str(self.folder)} | environment,
            capture_output=True,
            text=True,
        )

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def builders(tmp_path: Path) -> Builders:
    return Builders(tmp_path)


def test_without_a_builder_it_says_what_to_install(builders: Builders) -> None:
    result = builders.run()
    assert result.returncode == 1
    assert "apt-get install buildah" in result.stderr
    assert "Traceback" not in result.stderr


def test_docker_is_used_when_its_engine_answers(builders: Builders) -> None:
    builders.add("docker")
    builders.add("buildah")
    assert builders.run("--only", "operator").returncode == 0
    assert [call.split()[:2] for call in builders.calls] == [["docker", "info"], ["docker", "build"]]


def test_docker_without_an_engine_leaves_the_work_to_buildah(builders: Builders) -> None:
    builders.add("docker", "exit 1")
    builders.add("buildah")
    assert builders.run("--only", "operator").returncode == 0
    assert builders.calls[-1].startswith("buildah bud ")


def test_both_images_are_built_under_the_registry_and_the_version(builders: Builders) -> None:
    builders.add("buildah")
    assert builders.run("--registry", "registry.example.com/ml").returncode == 0
    assert [call.split("--tag ")[1].split()[0] for call in builders.calls] == [
        "registry.example.com/ml/finetune-operator:0.1.0",
        "registry.example.com/ml/finetune-trainer:0.1.0",
    ]


def test_base_image_mirror_and_certificates_reach_the_build(builders: Builders, tmp_path: Path) -> None:
    builders.add("buildah")
    builders.run(
        "--only", "trainer", "--base-image", "base:1", PIP_INDEX_URL="https://user:secret@mirror", PIP_CERT="/ca.crt"
    )
    (call,) = builders.calls
    assert "--file Dockerfile.trainer" in call
    assert "--build-arg BASE_IMAGE=base:1" in call
    assert "--build-arg PIP_INDEX_URL " in call, "by name alone: the address may hold a password"
    assert "--secret id=ca,src=/ca.crt" in call


def test_a_base_image_for_both_is_refused(builders: Builders) -> None:
    builders.add("buildah")
    result = builders.run("--base-image", "base:1")
    assert result.returncode == 2
    assert "--only" in result.stderr
    assert builders.calls == []


def test_a_failed_build_ends_it_and_leaves_no_archive(builders: Builders, tmp_path: Path) -> None:
    builders.add("buildah", "exit 3")
    result = builders.run("--archive", str(tmp_path / "out"))
    assert result.returncode == 1
    assert "buildah bud failed" in result.stderr
    assert len(builders.calls) == 1
    assert not (tmp_path / "out").exists()


def test_an_archive_appears_only_when_it_is_whole(builders: Builders, tmp_path: Path) -> None:
    archive = tmp_path / "out" / "operator.tar"
    builders.add("buildah", f'[ "$1" = bud ] || {{ [ ! -e {archive} ] && : > {archive.with_suffix(".partial")}; }}')
    assert builders.run("--only", "operator", "--archive", str(archive.parent)).returncode == 0
    assert builders.calls[-1].startswith("buildah push localhost/finetune-operator:0.1.0 docker-archive:")
    assert list(archive.parent.iterdir()) == [archive]

"""Builds the container images with docker or buildah.

    python images/build.py                                     both, named localhost/finetune-{operator,trainer}:VERSION
    python images/build.py --registry registry.example.com/ml  named for that registry, ready to be pushed
    python images/build.py --only operator --archive build     and written to build/operator.tar, for a cluster's nodes

Behind a package mirror set PIP_INDEX_URL, and PIP_CERT to the file of its certificate authority, as for pip itself.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ("operator", "trainer")


class BuildError(Exception):
    """An image could not be built. The message has the reason and the remedy."""


def find_builder() -> str:
    """Returns `docker` if its engine answers, or else `buildah`. Raises BuildError if neither is available."""
    if shutil.which("docker"):
        probe = subprocess.run(["docker", "info"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if probe.returncode == 0:
            return "docker"
    if shutil.which("buildah"):
        return "buildah"
    raise BuildError(
        "Building images needs docker with a running engine, or buildah. Neither was found. "
        "Start docker, or install buildah (Debian and Ubuntu: apt-get install buildah)."
    )


def image_name(image: str, registry: str) -> str:
    """Returns REGISTRY/finetune-IMAGE:VERSION, with the version from pyproject.toml."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return f"{registry}/finetune-{image}:{version}"


def build_arguments(image: str, name: str, base_image: str | None) -> list[str]:
    """Returns the options of docker build and buildah bud, with this environment's package mirror and certificates."""
    arguments = ["--file", f"Dockerfile.{image}", "--tag", name]
    if base_image:
        arguments += ["--build-arg", f"BASE_IMAGE={base_image}"]
    if os.environ.get("PIP_INDEX_URL"):
        # Without a value, the builder reads it from the environment, and `ps` does not show it.
        arguments += ["--build-arg", "PIP_INDEX_URL"]
    if os.environ.get("PIP_CERT"):
        arguments += ["--secret", f"id=ca,src={os.environ['PIP_CERT']}"]
    return [*arguments, "."]


def build(builder: str, image: str, name: str, base_image: str | None) -> None:
    """Builds one image with the name `name` into the builder's own store. Shows the builder's output."""
    command = {
        "docker": ["docker", "build"],
        # docker's image format, because the OCI format does not support some Dockerfile instructions of base images.
        "buildah": ["buildah", "bud", "--layers", "--format", "docker"],
    }[builder]
    environment = os.environ.copy()
    # This isolation needs no container runtime and only the privilege for chroot, so it also works inside a container.
    environment.setdefault("BUILDAH_ISOLATION", "chroot")
    _run([*command, *build_arguments(image, name, base_image)], environment)


def save(builder: str, name: str, archive: Path) -> None:
    """Writes the image to one file for `ctr images import` or `kind load image-archive`."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_suffix(".partial")
    partial.unlink(missing_ok=True)  # buildah would append to an existing archive.
    commands = {
        "docker": ["docker", "save", "--output", str(partial), name],
        "buildah": ["buildah", "push", name, f"docker-archive:{partial}:{name}"],
    }
    _run(commands[builder], os.environ.copy())
    partial.replace(archive)


def _run(command: list[str], environment: dict[str, str]) -> None:
    if subprocess.run(command, cwd=ROOT, env=environment).returncode != 0:
        raise BuildError(f"{' '.join(command[:2])} failed. The last lines of its output above have the reason.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=IMAGES, help="build only this image")
    parser.add_argument("--base-image", help="base image to use instead of the Dockerfile's BASE_IMAGE; needs --only")
    parser.add_argument(
        "--registry", default="localhost", help="first part of the images' names (default: %(default)s)"
    )
    parser.add_argument(
        "--archive", type=Path, metavar="FOLDER", help="also write FOLDER/operator.tar and FOLDER/trainer.tar"
    )
    options = parser.parse_args()
    if options.base_image and not options.only:
        parser.error("--base-image needs --only: the two images stand on different bases")
    try:
        builder = find_builder()
        for image in [options.only] if options.only else IMAGES:
            started, name = time.monotonic(), image_name(image, options.registry)
            print(f"Building {name} with {builder}", flush=True)
            build(builder, image, name, options.base_image)
            if options.archive:
                print(f"Writing {options.archive / image}.tar", flush=True)
                save(builder, name, options.archive / f"{image}.tar")
            print(f"Built {name} in {time.monotonic() - started:.0f} s", flush=True)
    except BuildError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

"""Repositories of a model hub, as hf:// URIs name them, and which of them a profile allows."""

from typing import Literal, NamedTuple

from finetune_api import globs
from finetune_api.spec.profile import Hub

SCHEME = "hf://"
_DATASETS = "datasets/"


class Repository(NamedTuple):
    """A model or a data set on a hub."""

    kind: Literal["model", "dataset"]
    name: str
    """ORG/NAME."""

    @property
    def path(self) -> str:
        """Return the name as the patterns of spec.hub.allowed match it: ORG/NAME or datasets/ORG/NAME."""
        return self.name if self.kind == "model" else f"{_DATASETS}{self.name}"

    @property
    def uri(self) -> str:
        """Return hf://ORG/NAME or hf://datasets/ORG/NAME."""
        return f"{SCHEME}{self.path}"


def split(uri: str) -> tuple[Repository, str] | None:
    """Return the repository of an hf:// URI and the path in it ("" for the whole repository); None for other URIs."""
    if not uri.startswith(SCHEME):
        return None
    rest = uri.removeprefix(SCHEME)
    dataset = rest.startswith(_DATASETS)
    parts = rest.removeprefix(_DATASETS).split("/", 2) if dataset else rest.split("/", 2)
    return Repository("dataset" if dataset else "model", "/".join(parts[:2])), "/".join(parts[2:])


def is_allowed(repository: Repository, hub: Hub) -> bool:
    """Whether jobs of the profile with this hub may read the repository."""
    return hub.allowed is None or globs.any_matches(hub.allowed, repository.path)


def refusal(uri: str, profile: str, hub: Hub | None) -> tuple[str, str] | None:
    """Return the finding why jobs of a profile may not read an hf:// URI, and the remedy; None if they may.

    Other URIs are never refused."""
    found = split(uri)
    if found is None:
        return None
    if hub is None:
        return (
            f"{uri} is on a model hub, but FineTuneProfile {profile} has no hub.",
            "Copy the files to S3 and use their s3:// URI, or set spec.hub of the profile.",
        )
    repository, _ = found
    if is_allowed(repository, hub):
        return None
    return (
        f"{repository.uri} is not among the repositories that FineTuneProfile {profile} allows. It allows "
        f"{', '.join(hub.allowed or [])}.",
        f"Use one of these repositories, or add {repository.path} to spec.hub.allowed of the profile.",
    )

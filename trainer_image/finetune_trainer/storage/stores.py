"""Chooses the storage of a URI by its scheme: s3:// a service of the profile, hf:// its hub, pvc:// a mounted volume,
others local paths."""

from collections.abc import Mapping
from pathlib import Path

from finetune_api import claims, hub, names
from finetune_api.bundle import Bundle, bucket_of, storage_of, unknown_bucket
from finetune_api.reasons import FailureReason
from finetune_api.uris import has_scheme
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.files import Files
from finetune_trainer.storage.local_files import LocalFiles

CORRECT_URI = (
    "Correct the URI. If the API server accepts it, the trainer is older than the operator: update spec.trainer.image "
    "of the FineTuneProfile."
)


class Stores:
    """The storages of a job. Each is connected when its first URI is used, because a client library takes a second to
    load."""

    def __init__(self, bundle: Bundle, secrets_dir: Path, hub_dir: Path, claims_dir: Path) -> None:
        """`secrets_dir`: has the folders with the keys of S3. `hub_dir`: has the token for the hub. `claims_dir`: has
        the volumes of claims."""
        self._bundle, self._secrets_dir, self._hub_dir, self._claims_dir = bundle, secrets_dir, hub_dir, claims_dir
        self._local = LocalFiles()
        self._connected: dict[str, Files] = {}
        self._commits: dict[str, str] = {}

    def of(self, uri: str) -> Files:
        """Returns the storage of a URI. Raises TrainerFailure SpecInvalid if the profile has none for it.

        A URI that only a later trainer knows is no path: what is written there would be lost with the pod."""
        if uri.startswith("s3://"):
            return self._s3(uri)
        if uri.startswith(claims.SCHEME):
            return self._claim(uri)
        if uri.startswith(hub.SCHEME):
            return self._hub(uri)
        if has_scheme(uri):
            known = f"s3://, {claims.SCHEME} and {hub.SCHEME}"
            raise TrainerFailure(
                FailureReason.SPEC_INVALID, f"{uri}: this trainer knows only URIs that begin with {known}.", CORRECT_URI
            )
        return self._local

    def commits(self) -> dict[str, str]:
        """Returns the commit of each repository of the hub that was read or pinned, by its URI."""
        return dict(self._commits)

    def pin(self, commits: Mapping[str, str]) -> None:
        """Makes later reads use these commits. Call it before the first read."""
        self._commits.update(commits)

    def _s3(self, uri: str) -> Files:
        from finetune_trainer.storage.s3.files import S3Files
        from finetune_trainer.storage.s3.temporary import TemporaryTag

        bucket, bundle = bucket_of(uri) or "", self._bundle
        storage = storage_of(bucket, bundle.storages)
        if storage is None:
            finding, remedy = unknown_bucket(bucket, bundle.spec.profile_name, bundle.storages)
            raise TrainerFailure(FailureReason.SPEC_INVALID, f"{uri}: {finding}", remedy)
        key = f"s3 {bundle.storages.index(storage)}"
        if key not in self._connected:
            # join, in the module that imports this one, gives the same
            tag = TemporaryTag(f"{bundle.spec.output.uri.rstrip('/')}/{names.WORK_FOLDER}/")
            self._connected[key] = S3Files(storage, self._secrets_dir, bundle.job, tag)
        return self._connected[key]

    def _hub(self, uri: str) -> Files:
        from finetune_trainer.storage.hub.files import HubFiles

        if refused := hub.refusal(uri, self._bundle.spec.profile_name, self._bundle.hub):
            raise TrainerFailure(FailureReason.SPEC_INVALID, *refused)
        if hub.SCHEME not in self._connected:
            self._connected[hub.SCHEME] = HubFiles(self._bundle, self._hub_dir, self._commits)
        return self._connected[hub.SCHEME]

    def _claim(self, uri: str) -> Files:
        from finetune_trainer.storage.claims.files import ClaimFiles

        if refused := claims.refusal(uri, self._bundle.spec.profile_name, self._bundle.claims):
            raise TrainerFailure(FailureReason.SPEC_INVALID, *refused)
        return ClaimFiles(self._bundle, self._claims_dir)

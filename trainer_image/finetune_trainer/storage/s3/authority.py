"""The certificate authority that signed the certificate of an S3 service, if it is a private one."""

import ssl
from pathlib import Path

from finetune_api import names
from finetune_api.bundle import JobIdentity
from finetune_api.reasons import FailureReason
from finetune_api.spec.profile import CaBundle, Storage
from finetune_trainer.pod.failure import TrainerFailure

UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
"""What OpenSSL says of a certificate that it does not trust."""
TRUST_IT = (
    "Set caBundle of this storage in the FineTuneProfile to a ConfigMap with the certificate of the authority that "
    "signed the certificate of the service."
)


def trusted(storage: Storage, secrets_dir: Path, job: JobIdentity | None) -> str | None:
    """Returns the path of the file with the storage's authority, or None if the storage names none.

    The ConfigMaps are mounted next to `secrets_dir`. Outside Kubernetes, where none is mounted, the authorities of the
    machine are used. Raises TrainerFailure StorageAccessDenied when the file is missing or contains no certificate."""
    bundle = storage.ca_bundle
    if bundle is None:
        return None
    folder = secrets_dir.with_name(Path(names.AUTHORITY_FOLDER).name) / bundle.config_map_name
    if job is None and not folder.exists():
        return None
    path = folder / bundle.key
    if not path.is_file():
        raise _unusable(storage, bundle, job, "is missing")
    try:
        ssl.create_default_context(cafile=str(path))
    except ssl.SSLError as error:
        raise _unusable(storage, bundle, job, "contains no certificate in PEM format") from error
    return str(path)


def _unusable(storage: Storage, bundle: CaBundle, job: JobIdentity | None, found: str) -> TrainerFailure:
    namespace = f" in namespace {job.namespace}" if job else ""
    return TrainerFailure(
        FailureReason.STORAGE_ACCESS_DENIED,
        f"The key {bundle.key} of ConfigMap {bundle.config_map_name}{namespace} {found}.",
        f"Create it with the certificate of the authority of {storage.endpoint}.",
    )

"""The failure of the job for an error of an S3 service."""

from boto3.exceptions import RetriesExceededError
from botocore.exceptions import (
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)

from finetune_api.reasons import FailureReason
from finetune_api.spec.profile import Storage
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.files import Place
from finetune_trainer.storage.s3.authority import TRUST_IT, UNTRUSTED
from finetune_trainer.storage.s3.cloud_identity import ExpiredError
from finetune_trainer.storage.s3.mounted_keys import REFUSED_KEYS

WRONG_CLOCK = {"RequestTimeTooSkewed"}
MISSING_KEY = {"404", "NoSuchKey", "NotFound"}
NO_ANSWER = (ConnectionError, HTTPClientError, IncompleteReadError, RetriesExceededError)


def failure_of(error: Exception, uri: str, place: Place, storage: Storage) -> TrainerFailure | None:
    """Returns the failure for an error, or None if the error does not come from the S3 service."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return TrainerFailure(FailureReason.STORAGE_ACCESS_DENIED, f"The pod has no credentials for {uri}.")
    if isinstance(error, CredentialRetrievalError):
        return TrainerFailure(
            FailureReason.STORAGE_UNAVAILABLE,
            f"The pod got no credentials of its cloud identity for {uri} ({type(error).__name__}).",
            "Check the service that gives pods their credentials, for example the agent of EKS Pod Identity.",
        )
    if isinstance(error, ExpiredError):
        return TrainerFailure(
            FailureReason.STORAGE_UNAVAILABLE,
            f"The credentials of the pod's cloud identity for {uri} were refreshed and have still expired.",
            "Have the clock of the node set (NTP), and check the service that gives pods their credentials.",
        )
    if isinstance(error, SSLError) and UNTRUSTED in str(error):
        return TrainerFailure(
            FailureReason.STORAGE_UNAVAILABLE,
            f"The certificate of {storage.endpoint or 'Amazon S3'} is not trusted "
            f"({str(error).partition(UNTRUSTED)[2].strip(' ]:')}).",
            TRUST_IT,
        )
    if isinstance(error, NO_ANSWER):
        return TrainerFailure(
            FailureReason.STORAGE_UNAVAILABLE,
            f"The S3 service at {where(storage)} did not answer for {uri} ({type(error).__name__}).",
        )
    return _refusal(error, uri, place, storage) if isinstance(error, ClientError) else None


def _refusal(error: ClientError, uri: str, place: Place, storage: Storage) -> TrainerFailure:
    code, status = code_of(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code == "NoSuchBucket":
        return TrainerFailure(place.missing, f"The bucket {split(uri)[0]} of {uri} does not exist.")
    if code in MISSING_KEY:
        return TrainerFailure(place.missing, f"There is no {uri}.")
    if code in WRONG_CLOCK:
        return TrainerFailure(
            FailureReason.STORAGE_UNAVAILABLE,
            f"The S3 service does not accept the time of the pod's clock for {uri} ({code}).",
            "Have the clock of the node, or of the S3 service, set (NTP).",
        )
    if code in REFUSED_KEYS:
        return TrainerFailure(
            FailureReason.STORAGE_ACCESS_DENIED,
            f"The S3 service does not accept {_identity(storage)} for {uri} ({code}).",
        )
    if status == 403:
        who = _identity(storage)
        return TrainerFailure(place.denied, f"The S3 service does not allow {who} to {_verb(error)} {uri} ({code}).")
    return TrainerFailure(FailureReason.STORAGE_UNAVAILABLE, f"The S3 service failed to {_verb(error)} {uri} ({code}).")


def _identity(storage: Storage) -> str:
    name = storage.credentials_secret_name
    return f"the keys of Secret {name}" if name else "the pod's own cloud identity"


def where(storage: Storage) -> str:
    """Returns the name of the service in a sentence."""
    return storage.endpoint or f"Amazon S3 in {storage.region}"


def split(uri: str) -> tuple[str, str]:
    """Returns the bucket and the key of s3://BUCKET/KEY."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def code_of(error: ClientError) -> str:
    """Returns the code of an error, such as NoSuchKey."""
    return error.response.get("Error", {}).get("Code", "unknown error")


def _verb(error: ClientError) -> str:
    writing = error.operation_name.startswith(("Put", "Create", "Upload", "Complete", "Delete"))
    return "write" if writing else "list" if error.operation_name.startswith("List") else "read"

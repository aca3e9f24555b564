"""What an error of a hub means for the job."""

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from finetune_api import globs, hub, names
from finetune_api.bundle import Bundle, sources_of
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.files import Place
from finetune_trainer.storage.hub.requests import HTTPError, NoRanges, asked_pause


class NoSuchFile(Exception):  # noqa: N818 - a finding
    """The repository does not have the file."""


class NoHub(Exception):  # noqa: N818 - a finding
    """The answer is not that of a hub."""


class DamagedFile(Exception):  # noqa: N818 - a finding
    """The bytes that arrived do not have the digest that the hub gives."""


def failure_of_hub(error: Exception, about: "Request") -> TrainerFailure | None:
    """Returns the failure for an error of a request, or None if the error does not come from the hub."""
    uri = about.uri
    if isinstance(error, NoSuchFile):
        return about.missing(f"There is no {uri} at {about.revision}.", about.correct("path"))
    if isinstance(error, HFValidationError):
        return about.missing(f"{about.repository} is not a name that a repository on the hub can have.", None)
    if isinstance(error, DamagedFile):
        return about.unavailable(f"The content of {uri} does not match the digest that the hub has of it.")
    if isinstance(error, NoHub):
        return about.unavailable(f"The answer of {about.endpoint} for {about.repository} is not that of a hub.")
    if isinstance(error, NoRanges):
        return about.unavailable(f"The hub at {about.endpoint} does not support range requests ({uri}).")
    if isinstance(error, OfflineModeIsEnabled):
        return about.unavailable(f"HF_HUB_OFFLINE is set in this process, so {uri} cannot be read.")
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, about)
    if isinstance(error, HTTPError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return about.unavailable(
            f"The certificate of the hub at {about.endpoint}, or of its storage, is signed by an authority that the "
            "trainer's image does not trust."
        )
    if isinstance(error, HTTPError):
        return about.unavailable(f"The hub at {about.endpoint} did not answer for {uri} ({type(error).__name__}).")
    return None


class Request:
    """What was requested, in the words of the messages."""

    def __init__(self, uri: str, place: Place, bundle: Bundle, token: bool, commit: str | None) -> None:
        """`token`: whether the request had a token. `commit`: that of the repository, if it is known."""
        found = hub.split(uri)
        assert found
        assert bundle.hub
        self.uri, self.bundle, self.endpoint, self.has_token = uri, bundle, bundle.hub.endpoint, token
        self.is_model = found[0].kind == "model"
        self.repository, self.name = found[0].uri, found[0].name
        self.revision = f"revision {bundle.spec.model.revision or 'main'}" if self.is_model else "revision main"
        self._place, self.commit = place, commit

    def missing(self, finding: str, remedy: str | None) -> TrainerFailure:
        return TrainerFailure(self._place.missing, finding, remedy)

    def denied(self, finding: str, remedy: str) -> TrainerFailure:
        reason = FailureReason.MODEL_ACCESS_DENIED if self.is_model else self._place.denied
        return TrainerFailure(reason, finding, remedy)

    def unavailable(self, finding: str) -> TrainerFailure:
        return TrainerFailure(FailureReason.STORAGE_UNAVAILABLE, finding, self._check_hub)

    @property
    def _check_hub(self) -> str:
        return f"Check the hub, and spec.hub.endpoint of FineTuneProfile {self.bundle.spec.profile_name}."

    def correct(self, what: str) -> str:
        if self.is_model:
            return "Correct spec.model.uri."
        fields = [f"{field}.uri" for field, source in sources_of(self.bundle.spec).items() if self._is_of(source.uri)]
        return f"Correct the {what} in {' and '.join(fields) or 'that uri'}."

    def _is_of(self, source: str) -> bool:
        """Returns whether the request was for this source, or for one of its files."""
        return self.uri == source or bool(globs.expression(source).fullmatch(self.uri))

    @property
    def token(self) -> str:
        """The token of the requests, as the subject or object of a sentence."""
        reference = self.bundle.spec.model.token_secret_ref
        if reference:
            return f"the token in Secret {reference.name}, key {reference.key} (spec.model.tokenSecretRef)"
        secret = self.bundle.hub.token_secret_name if self.bundle.hub else None
        return f"the token in Secret {secret}, key {names.HUB_TOKEN_KEY}" if secret else "the token of your own login"

    @property
    def no_token(self) -> str:
        """Why the requests had no token, as a sentence."""
        reference = self.bundle.spec.model.token_secret_ref
        secret = reference.name if reference else self.bundle.hub.token_secret_name if self.bundle.hub else None
        if secret is None:
            return "The job has no token."
        where = f" in namespace {self.bundle.job.namespace}" if self.bundle.job else ""
        key = reference.key if reference else names.HUB_TOKEN_KEY
        why = f"Secret {secret}{where} with the key {key} is missing, empty or not plain text"
        return f"The job has no token, because {why}."

    @property
    def set_token(self) -> str:
        return (
            "set spec.model.tokenSecretRef to a Secret with the token of an account that may read it"
            if self.is_model
            else "give the job a token of an account that may read it, in spec.model.tokenSecretRef or in the Secret "
            "that spec.hub.tokenSecretName of the profile names"
        )


def _refusal(error: HfHubHTTPError, about: Request) -> TrainerFailure:
    status, code = error.response.status_code, error.response.headers.get("X-Error-Code")
    if code == "GatedRepo":
        return _gated(about)
    if code == "RevisionNotFound" and about.commit:
        return about.missing(
            f"{about.repository} has no commit {about.commit} any more, which preflight read.",
            "Use a repository whose history is not rewritten while the job runs.",
        )
    if code == "RevisionNotFound":
        return about.missing(
            f"{about.repository} has no {about.revision}.",
            "Set spec.model.revision to a branch, a tag or a commit of the model."
            if about.is_model
            else "Use a data set with a branch main.",
        )
    if code == "EntryNotFound":
        return about.missing(f"There is no {about.uri} at {about.revision}.", about.correct("path"))
    if code == "RepoNotFound" or status == 404:
        return _unknown(about)
    if status == 401:
        return _unauthorized(about)
    if status == 403:
        return about.denied(
            f"The hub does not allow {about.token} to read {about.repository}.", _capital(about.set_token)
        )
    wait = asked_pause(error.response.headers)
    asked = f" and asks to wait {wait:.0f} s" if wait else ""
    return about.unavailable(f"The hub at {about.endpoint} failed to read {about.uri} (status {status}{asked}).")


def _gated(about: Request) -> TrainerFailure:
    page = f"{about.endpoint}/{'' if about.is_model else 'datasets/'}{about.name}"
    if about.has_token:
        return about.denied(
            f"{about.repository} is gated, and the account of {about.token} has no access to it.",
            f"Accept its conditions at {page} with that account. If access needs a review, wait for it.",
        )
    return about.denied(
        f"{about.repository} is gated. {about.no_token}",
        f"Accept its conditions at {page}, and {about.set_token}.",
    )


def _unknown(about: Request) -> TrainerFailure:
    """A hub does not say whether a repository is missing or private."""
    if about.has_token:
        return about.missing(
            f"{about.repository} does not exist on {about.endpoint}, or {about.token} may not see it.",
            f"{about.correct('name')} If it is private, {about.set_token}.",
        )
    return about.missing(
        f"{about.repository} does not exist on {about.endpoint}, or is private. {about.no_token}",
        f"{about.correct('name')} If it is private, {about.set_token}.",
    )


def _unauthorized(about: Request) -> TrainerFailure:
    if not about.has_token:
        return _unknown(about)
    return about.denied(
        f"The hub at {about.endpoint} does not accept {about.token} for {about.repository}.",
        f"Write a valid token to that Secret, or {about.set_token}.",
    )


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."

"""The credentials of the pod's cloud identity: of EKS Pod Identity, IRSA, or the node's role. They expire.

botocore compares their expiry with the clock of the pod. With a clock that is ahead they would count as expired as soon
as they were issued, and with one that is behind as valid when they are not. So the time of the service counts here too.
"""

from botocore.credentials import CredentialProvider, Credentials, ReadOnlyCredentials, RefreshableCredentials
from botocore.credentials import create_credential_resolver as botocores_own
from botocore.session import Session

from finetune_trainer.storage.s3.service_clock import ServiceClock


class ExpiredError(Exception):
    """The credentials were refreshed and are still expired."""


class CloudIdentity(Credentials):
    """Credentials that expire by the time of the service."""

    def __init__(self, found: RefreshableCredentials, clock: ServiceClock) -> None:
        super().__init__("", "", method=found.method)
        # An argument of its class, which no provider of botocore passes on.
        found._time_fetcher = clock.time  # type: ignore[attr-defined]
        self._found, self._clock = found, clock

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Returns the credentials for the next request, and refreshes them if they are about to expire. Raises
        ExpiredError, and the errors of botocore if there are none."""
        try:
            return self._frozen()
        except ExpiredError:
            # No request has told the time of the service yet, or the clock of the pod was changed since the last one.
            self._clock.ask()
            return self._frozen()

    def _frozen(self) -> ReadOnlyCredentials:
        try:
            return self._found.get_frozen_credentials()
        except RuntimeError as error:  # botocore has no class for it
            raise ExpiredError(str(error)) from error


class CloudIdentityProvider(CredentialProvider):
    """Provides what botocore finds itself. Credentials that expire are those of a CloudIdentity."""

    METHOD = "cloud-identity"

    def __init__(self, session: Session, region: str | None, clock: ServiceClock) -> None:
        super().__init__(session)
        self._own, self._clock = botocores_own(session, _Forgetful(), region), clock

    def load(self) -> Credentials | None:
        """Returns the credentials, or None if there are none."""
        found = self._own.load_credentials()
        return CloudIdentity(found, self._clock) if isinstance(found, RefreshableCredentials) else found


class _Forgetful(dict[str, object]):
    """A cache of botocore that keeps nothing. Those of a role are kept by the clock of the pod otherwise."""

    def __setitem__(self, key: str, value: object) -> None:
        """Keeps nothing."""

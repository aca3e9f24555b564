"""PersistentVolumeClaims of the job's namespace, as pvc:// URIs name them, and which of them a profile allows."""

from finetune_api import globs
from finetune_api.spec.profile import Claims

SCHEME = "pvc://"


def split(uri: str) -> tuple[str, str] | None:
    """Return the claim of a pvc:// URI and the path in its volume, "" for the whole volume; None for other URIs."""
    if not uri.startswith(SCHEME):
        return None
    claim, _, path = uri.removeprefix(SCHEME).partition("/")
    return claim, path


def refusal(uri: str, profile: str, claims: Claims | None) -> tuple[str, str] | None:
    """Return the finding why jobs of a profile may not use a pvc:// URI, and the remedy; None if they may.

    Other URIs are never refused."""
    found = split(uri)
    if found is None:
        return None
    if claims is None:
        return (
            f"{uri} is in a PersistentVolumeClaim, but FineTuneProfile {profile} allows no claims.",
            "Copy the files to S3 and use their s3:// URI, or set spec.claims of the profile.",
        )
    claim, _ = found
    if globs.any_matches(claims.allowed, claim):
        return None
    return (
        f"PersistentVolumeClaim {claim} is not among the claims that FineTuneProfile {profile} allows. It allows "
        f"{', '.join(claims.allowed)}.",
        f"Use one of these claims, or add {claim} to spec.claims.allowed of the profile.",
    )

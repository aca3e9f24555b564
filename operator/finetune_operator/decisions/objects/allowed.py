"""Whether the profile allows what a job sets for its pods: labels, annotations and a PriorityClass."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec


def not_allowed(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> tuple[str, str] | None:
    """Return the finding about the first value that the profile does not allow, and the remedy; else None.

    A job adds to what the profile sets for all pods, and replaces none of it but the PriorityClass."""
    compute, allowed = spec.compute, profile.pods.allowed
    priority = [compute.priority_class_name] if compute.priority_class_name else []
    for field, list_name, values, patterns in (
        ("labels", "labels", compute.labels or (), allowed.labels or []),
        ("annotations", "annotations", compute.annotations or (), allowed.annotations or []),
        ("priorityClassName", "priorityClassNames", priority, allowed.priority_class_names or []),
    ):
        if (first := _unmatched(values, patterns)) is not None:
            known = ", ".join(patterns) or "none"
            return (
                f'spec.compute.{field}: FineTuneProfile {spec.profile_name} does not allow "{first}". It allows: '
                f"{known}.",
                f"Remove it, or ask the platform team to add it to spec.pods.allowed.{list_name} of the profile.",
            )
    return _set_by_profile(spec, profile)


def _set_by_profile(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> tuple[str, str] | None:
    """Return the finding about the first label or annotation of which the profile sets another value; else None."""
    compute, pods = spec.compute, profile.pods
    for field, values, own in (
        ("labels", compute.labels or {}, pods.labels or {}),
        ("annotations", compute.annotations or {}, pods.annotations or {}),
    ):
        if (first := next((key for key, value in values.items() if own.get(key, value) != value), None)) is not None:
            return (
                f'spec.compute.{field}: FineTuneProfile {spec.profile_name} sets "{first}" for all pods, to another '
                "value.",
                f"Remove it, or ask the platform team to remove it from spec.pods.{field} of the profile.",
            )
    return None


def _unmatched(values: Iterable[str], patterns: list[str]) -> str | None:
    """Return the first value that no pattern matches."""
    return next((value for value in values if not any(fnmatchcase(value, pattern) for pattern in patterns)), None)

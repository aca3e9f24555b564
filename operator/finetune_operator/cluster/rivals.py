"""Reads which other jobs of the cluster write to the place a job writes to."""

from finetune_api import names
from finetune_api.bundle import bucket_of, storage_of
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.status.job import ConditionType, FineTuneJobStatus
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.profiles import profile_of
from finetune_operator.observed.pods import Object
from finetune_operator.observed.world import Rival, parse_spec


def rivals_of(api: Api, uid: str, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> tuple[Rival, ...]:
    """Those with the output.uri of the job `uid`, with or without a slash at its end, in the same S3 service."""
    place = spec.output.uri.rstrip("/")
    selectors = (f"spec.output.uri={_escaped(uri)}" for uri in (place, f"{place}/"))
    others = [job for selector in selectors for job in api.list(names.JOB_KIND, fields=selector)]
    return tuple(
        _rival(api, job)
        for job in others
        if job["metadata"]["uid"] != uid and _may_write(job) and _endpoint_of(api, job) == _endpoint(spec, profile)
    )


def _rival(api: Api, job: Object) -> Rival:
    namespace, name, uid = (job["metadata"][key] for key in ("namespace", "name", "uid"))
    attempt = api.get("Job", names.attempt_name(name, uid, 1), namespace)
    return Rival.parse(job, begun=attempt is not None)


def _may_write(job: Object) -> bool:
    """Whether its preflight has shown that it can, and it has not ended."""
    status = FineTuneJobStatus.model_validate(job.get("status", {}))
    return status.is_true(ConditionType.VALIDATED) and not status.is_over and "deletionTimestamp" not in job["metadata"]


def _endpoint_of(api: Api, job: Object) -> str | None:
    """Where another job writes, as far as this version can read it."""
    spec, _ = parse_spec(FineTuneJobSpec, job["spec"])
    profile = profile_of(api, spec)[0] if spec else None
    return _endpoint(spec, profile) if spec and profile else None


def _endpoint(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> str | None:
    """The S3 service of a job's output: of two with the same URI, each may have a bucket of its own. None: AWS's."""
    bucket = bucket_of(spec.output.uri)
    storage = storage_of(bucket, profile.storages) if bucket else None
    return storage.endpoint if storage else None


def _escaped(value: str) -> str:
    """As k8s.io/apimachinery/pkg/fields.EscapeValue writes it."""
    return value.replace("\\", "\\\\").replace(",", "\\,").replace("=", "\\=")

"""Finds the other jobs of the cluster that write to the same output as a job."""

from finetune_api import names
from finetune_api.bundle import bucket_of, storage_of
from finetune_api.conflicts import normal, overlap
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.status.job import ConditionType, FineTuneJobStatus
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.profiles import profile_of
from finetune_operator.observed.pods import Object
from finetune_operator.observed.world import Rival, parse_spec


def rivals_of(api: Api, uid: str, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> tuple[Rival, ...]:
    """Return the other jobs of the same S3 service whose output.uri equals or overlaps that of the job `uid`."""
    return tuple(
        _rival(api, job, spec.output.uri)
        for job in api.list(names.JOB_KIND)
        if job["metadata"]["uid"] != uid
        and overlap(_output_of(job), spec.output.uri)
        and _may_write(job)
        and _endpoint_of(api, job) == _endpoint(spec, profile)
    )


def _rival(api: Api, job: Object, output: str) -> Rival:
    namespace, name, uid = (job["metadata"][key] for key in ("namespace", "name", "uid"))
    attempt = api.get("Job", names.attempt_name(name, uid, 1), namespace)
    theirs = _output_of(job)
    return Rival.parse(job, attempt is not None, theirs if normal(theirs) != normal(output) else None)


def _output_of(job: Object) -> str:
    return str(job["spec"]["output"]["uri"])


def _may_write(job: Object) -> bool:
    """Whether the job has passed its preflight and has not ended."""
    status = FineTuneJobStatus.model_validate(job.get("status", {}))
    return status.is_true(ConditionType.VALIDATED) and not status.is_over and "deletionTimestamp" not in job["metadata"]


def _endpoint_of(api: Api, job: Object) -> str | None:
    """Return the endpoint of another job's output, if this version can read that job."""
    spec, _ = parse_spec(FineTuneJobSpec, job["spec"])
    profile = profile_of(api, spec)[0] if spec else None
    return _endpoint(spec, profile) if spec and profile else None


def _endpoint(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> str | None:
    """Return the endpoint of a job's output; None means AWS. Different services can have buckets of the same name."""
    bucket = bucket_of(spec.output.uri)
    storage = storage_of(bucket, profile.storages) if bucket else None
    return storage.endpoint if storage else None

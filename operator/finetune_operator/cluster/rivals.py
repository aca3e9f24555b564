"""Finds the other jobs of the cluster that write to the same output as a job."""

from finetune_api import claims
from finetune_api.bundle import bucket_of, storage_of
from finetune_api.conflicts import normal
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.cluster.profiles import profile_of
from finetune_operator.observed.world import Key, Rival
from finetune_operator.store.kept import KeptJob
from finetune_operator.store.store import Store


def rivals_of(
    store: Store, key: Key, uid: str, spec: FineTuneJobSpec, profile: FineTuneProfileSpec
) -> tuple[Rival, ...]:
    """Return the other jobs of the same S3 service, or of the same namespace if the output is in a claim, whose
    output.uri equals or overlaps that of the job `uid`.

    A job counts also if this version cannot read its spec."""
    output, endpoint = normal(spec.output.uri), _endpoint(spec.output.uri, profile)
    in_a_claim = claims.split(spec.output.uri) is not None
    return tuple(
        Rival(
            name="/".join(job.key),
            uid=job.uid,
            created=job.created,
            begun=begun,
            overlapping=job.written_output if job.output != output else None,
        )
        for job, begun in store.writers(output)
        if job.uid != uid and (job.key[0] == key[0] if in_a_claim else _endpoint_of(store, job) == endpoint)
    )


def _endpoint_of(store: Store, job: KeptJob) -> str | None:
    """Return the endpoint of another job's output; also None if its profile cannot be read."""
    profile = profile_of(store, job.profile)[0]
    return _endpoint(job.written_output, profile) if profile else None


def _endpoint(output: str, profile: FineTuneProfileSpec) -> str | None:
    """Return the endpoint of a job's output; None means AWS. Different services can have buckets of the same name."""
    bucket = bucket_of(output)
    storage = storage_of(bucket, profile.storages) if bucket else None
    return storage.endpoint if storage else None

"""What is left to do for a job that has ended: delete its checkpoints and children in time, and note that its spec has
changed."""

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api import names
from finetune_operator.decisions import cleanups
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.status.conditions import seen_again
from finetune_operator.observed.world import World

WITHOUT_JOBS = timedelta(days=1)
"""How long after its time to live the other children of a job without Jobs are deleted, which nobody can see. Else
every start of the operator would delete those of every job that has ever ended."""


def after_the_end(world: World, now: datetime) -> Plan:
    """Return the plan for a job that has ended. Its state never changes again."""
    plan = _without_expired(world, cleanups.next_step(world, now), now)
    is_stale = world.raw_status.get("observedGeneration", world.generation) != world.generation
    return replace(plan, status=seen_again(world)) if is_stale and plan.status is None else plan


def _without_expired(world: World, plan: Plan, now: datetime) -> Plan:
    """Return the plan with the deletion of the children whose time to live is over.

    The cleanup and the bundle that it reads stay until the plan tells that the checkpoints are deleted. A cleanup that
    failed stays for its log until its own time is over (children.CLEANUP_KEPT_SECONDS). Kubernetes then deletes it."""
    if world.ttl is None or world.ended_at is None:
        return plan
    left = world.ended_at + world.ttl - now
    if left > timedelta(0):
        looks = (left, plan.requeue_after)
        return replace(plan, requeue_after=min(look for look in looks if look is not None))
    is_told = world.keep is not None and plan.status is not None
    is_kept = world.keep is not None and not is_told
    cleanup = names.cleanup_name(world.name, world.uid)
    stays = is_kept or (world.cleanup is not None and world.cleanup.failed)
    jobs = [name for name in world.children if not (stays and name == cleanup)]
    # A cleanup that waits for its turn or runs is looked at every minute. The deletion is not repeated each time.
    cleans_up = is_kept and world.keep is not None and world.ended_at + world.keep <= now
    is_due = bool(jobs) or is_told or (not cleans_up and -left < WITHOUT_JOBS)
    return replace(
        plan,
        delete_jobs=list(dict.fromkeys((*plan.delete_jobs, *jobs))),
        delete_config_maps=[names.child_prefix(world.name, world.uid)] if is_due and not is_kept else [],
        delete_networks=[names.nodes_name(world.name, world.uid)] if is_due and world.had_several_nodes else [],
    )

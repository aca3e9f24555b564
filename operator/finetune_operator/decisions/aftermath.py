"""What is left to do for a job that has ended: delete its checkpoints and children in time, and note that its spec has
changed."""

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api import names
from finetune_operator.decisions import cleanups
from finetune_operator.decisions.conditions import seen_again
from finetune_operator.decisions.plan import Plan
from finetune_operator.observed.world import World


def after_the_end(world: World, now: datetime) -> Plan:
    """Return the plan for a job that has ended. Its state never changes again."""
    plan = _without_expired(world, cleanups.next_step(world, now), now)
    is_stale = world.raw_status.get("observedGeneration", world.generation) != world.generation
    return replace(plan, status=seen_again(world)) if is_stale and plan.status is None else plan


def _without_expired(world: World, plan: Plan, now: datetime) -> Plan:
    """Return the plan with the deletion of the children whose time to live is over.

    The cleanup and the bundle that it reads stay until the checkpoints are deleted."""
    needed = {names.cleanup_name(world.name, world.uid)} if world.keep is not None else set()
    expired = [name for name in world.children if name not in needed]
    if world.ttl is None or world.ended_at is None or not expired:
        return plan
    left = world.ended_at + world.ttl - now
    if left > timedelta(0):
        looks = (left, plan.requeue_after)
        return replace(plan, requeue_after=min(look for look in looks if look is not None))
    bundles = [] if needed else [names.child_prefix(world.name, world.uid)]
    networks = [names.nodes_name(world.name, world.uid)] if world.had_several_nodes else []
    return replace(plan, delete_jobs=expired, delete_config_maps=bundles, delete_networks=networks)

"""What is left to do for a job that has ended: delete its children in time, and note that its spec has changed."""

from datetime import datetime

from finetune_api import names
from finetune_operator.decisions.conditions import seen_again
from finetune_operator.decisions.plan import Plan
from finetune_operator.observed.world import World


def after_the_end(world: World, now: datetime) -> Plan:
    """Return the plan for a job that has ended. Its state never changes again."""
    is_stale = world.raw_status.get("observedGeneration", world.generation) != world.generation
    status = seen_again(world) if is_stale else None
    if world.ttl is None or world.ended_at is None or not world.children:
        return Plan(status=status)
    left = world.ended_at + world.ttl - now
    if left.total_seconds() > 0:
        return Plan(status=status, requeue_after=left)
    bundle = names.child_prefix(world.name, world.uid)
    return Plan(delete_config_maps=[bundle], delete_jobs=list(world.children), status=status)

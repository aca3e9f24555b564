"""Reads a plan: what it creates, and what it writes in the status."""

from finetune_operator.decisions.plan import Plan


def kinds(plan: Plan) -> list[str]:
    return [body["kind"] for body in plan.create]


def conditions(plan: Plan) -> dict[str, str]:
    assert plan.status is not None
    return {c["type"]: c["status"] for c in plan.status["conditions"]}


def message(plan: Plan) -> str:
    assert plan.status is not None
    return next(c["message"] for c in plan.status["conditions"] if c["type"] == "Ready")


def reason(plan: Plan) -> str:
    assert plan.status is not None
    return next(c["reason"] for c in plan.status["conditions"] if c["type"] == "Ready")


def state(plan: Plan) -> str:
    assert plan.status is not None
    return str(plan.status["state"])

"""The phases of a job, as its status and the log of its pod show them."""

from enum import StrEnum

from tests.integration.kube import Object


class Phase(StrEnum):
    """A part of a job's work, in the order in which they come."""

    PREFLIGHT = "preflight"
    LOAD = "load"
    BASE = "base evaluation"
    TRAIN = "train"
    SAVE = "save"
    TUNED = "tuned evaluation"
    PUBLISH = "publish"

    @property
    def rank(self) -> int:
        """Its place in the order, from 0."""
        return list(Phase).index(self)


TUNED_LINE = "with the tuned model."
"""What the log says when the tuned model is about to answer."""
_BY_REASON = {"LoadingModel": Phase.LOAD, "EvaluatingBase": Phase.BASE, "Training": Phase.TRAIN}


def phase_of(status: Object, log: str) -> Phase | None:
    """Returns the phase; None while no pod works for the job. `log`: of the attempt's pod."""
    if status.get("state") == "Validating":
        return Phase.PREFLIGHT
    if status.get("state") != "Running":
        return None
    reasons = {c["type"]: c["reason"] for c in status.get("conditions", [])}
    trained = reasons.get("Trained", "")
    if trained != "TrainingSucceeded":
        return _BY_REASON.get(trained)
    if "Evaluated" in reasons:
        return Phase.PUBLISH
    return Phase.TUNED if TUNED_LINE in log else Phase.SAVE

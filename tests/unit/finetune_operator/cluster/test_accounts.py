"""A tenant's own ServiceAccount: a good answer is remembered for a while, a bad one is asked for again."""

import pytest

from finetune_operator.cluster import accounts
from finetune_operator.cluster.accounts import GOOD, REMEMBER_SECONDS, Accounts, Standing
from finetune_operator.observed.facts.pods import Object


class Answers:
    """An API server that knows the ServiceAccounts in `present`, which may all report if `allowed`."""

    def __init__(self) -> None:
        self.present, self.allowed, self.asked = {"irsa"}, True, 0

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        self.asked += 1
        return {} if name in self.present else None

    def may_report(self, namespace: str, account: str) -> bool:
        return self.allowed


def test_a_good_answer_is_remembered_and_a_bad_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(accounts.time, "monotonic", lambda: now[0])
    api = Answers()
    known = Accounts(api)  # type: ignore[arg-type]

    api.allowed = False
    assert known.standing("team", "irsa") == Standing(exists=True, may_report=False)
    api.allowed = True
    assert [known.standing("team", "irsa") for _ in range(3)] == [GOOD] * 3
    assert api.asked == 2
    assert known.standing("team", "other") == Standing(exists=False, may_report=True)

    api.present.clear()
    now[0] += REMEMBER_SECONDS
    assert known.standing("team", "irsa") == Standing(exists=False, may_report=True)

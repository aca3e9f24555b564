"""What an attempt learns from those before it."""

import pytest

from finetune_trainer.training.run import Attempt
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.preflight_runs import run


@pytest.mark.parametrize(("halvings", "tokens"), [(0, 600), (1, 300), (2, 150), (20, 1)])
def test_measurements_need_less_memory_after_each_attempt_that_ran_out_of_it(
    make_bundle: MakeBundle, halvings: int, tokens: int
) -> None:
    resolved = run(make_bundle()).resolved.model_copy(update={"micro_batch_tokens": 600})

    assert Attempt(2, halvings).tokens(resolved) == tokens

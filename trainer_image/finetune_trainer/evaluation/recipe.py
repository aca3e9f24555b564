"""The evaluation as a whole: the base model before it is tuned, the tuned model after, and what follows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from finetune_api.bundle import Bundle
from finetune_api.spec.evaluation import Baseline
from finetune_api.status.evaluation import Evaluation, Merged, Quantized
from finetune_trainer.evaluation.gates import gate_results, regression_result
from finetune_trainer.evaluation.generation import context
from finetune_trainer.evaluation.quantized import base_name, compare_quantized, only_quantized
from finetune_trainer.evaluation.scoring import Evaluator
from finetune_trainer.evaluation.status import evaluation_status
from finetune_trainer.evaluation.verdict import Cost, unended, verdict
from finetune_trainer.handover.few_shot import few_shot_draws, why_none
from finetune_trainer.handover.mixing import draw_rows
from finetune_trainer.handover.prepared import Example, Prepared
from finetune_trainer.metrics.values import LIKELIHOODS
from finetune_trainer.preflight.advice import END_UNTRAINED
from finetune_trainer.preflight.resolve import room_for
from finetune_trainer.statistics.comparison import Comparison, compare
from finetune_trainer.statistics.measurements import FewShot, Measured
from finetune_trainer.tokens.render import prompt_format

ROOM = 16_384
"""Longest prompt with examples, in tokens, where the model's context is longer: beyond, the keys and values of a few
prompts fill a GPU."""


@dataclass(frozen=True, eq=False)
class Baselines:
    """What the base model does."""

    base: Measured
    few_shot: FewShot | None
    """None where it was not asked for, or no example fits into the model's context."""
    regression: Mapping[str, Measured]
    """By the set's name."""
    quantized: Measured | None = None
    """Under QLoRA the model in 4 bits, without answers, where `base` is that in bf16."""
    shortage: str | None = None
    """Under QLoRA, why `base` is the model in 4 bits."""

    @property
    def told(self) -> Quantized | None:
        """What the status says of quantizing, under QLoRA."""
        if self.quantized:
            return compare_quantized(self.base, self.quantized)
        return only_quantized(self.base, self.shortage) if self.shortage else None


@dataclass(frozen=True, eq=False)
class Assessment:
    """All that the evaluation found."""

    baselines: Baselines
    tuned: Measured
    comparison: Comparison
    evaluation: Evaluation
    """The same as the status has it, with the verdict."""

    def with_merged(self, merged: Merged) -> "Assessment":
        """The same, with what merging changed."""
        return replace(self, evaluation=self.evaluation.model_copy(update={"merged": merged}))


class Assessor:
    """Measures every model of a job on the same rows."""

    def __init__(self, bundle: Bundle, prepared: Prepared, evaluator: Evaluator) -> None:
        """Raises ValueError where `prepared` does not say what to measure."""
        if not prepared.resolved.metrics:
            raise ValueError("status.resolved.metrics names no metric")
        self._spec, self._prepared, self._evaluator = bundle.spec, prepared, evaluator
        wish, seed = bundle.spec.evaluation, bundle.spec.dataset.split.seed
        self.held_out: Sequence[Example] = draw_rows(prepared.test, wish.max_rows, seed)
        self._regression = {name: draw_rows(rows, wish.max_rows, seed) for name, rows in prepared.regression.items()}
        self._metrics = prepared.resolved.metrics

    @property
    def _asks(self) -> bool:
        """Whether any metric is one of the models' own answers."""
        return not set(self._metrics) <= set(LIKELIHOODS)

    def baselines(self, model: PreTrainedModel, say: Callable[[str], None]) -> Baselines:
        """Measures the base model. `say` is told what answers next where that is not the base model as it is."""
        base = self._evaluator.measure("the base model", model, self.held_out, self._asks)
        return Baselines(base, self._few_shot(model, say), self._measure_regression("the base model", model))

    def beside_quantized(self, baselines: Baselines, model: PreTrainedModel) -> Baselines:
        """The same with `model`, the base in 4 bits. It writes no answers: they take long, and where that in bf16 fits
        nobody would serve this one instead of tuning."""
        found = self._evaluator.measure("the base model in 4 bits", model, self.held_out, answers=False)
        return replace(baselines, quantized=found)

    def assess(self, model: PreTrainedModel, baselines: Baselines, cost: Callable[[], Cost | None]) -> Assessment:
        """Measures the tuned model and compares it. `cost`: tells, once that is done, what the training took and this
        with it, where there was one."""
        tuned = self._evaluator.measure("the tuned model", model, self.held_out, self._asks)
        regression = self._measure_regression("the tuned model", model)
        spec, wish = self._spec, self._spec.evaluation
        comparison = compare(
            self.held_out,
            baselines.base,
            baselines.few_shot,
            tuned,
            self._metrics,
            self._prepared.answers,
            spec.training.seed,
            spec.dataset.source_names("test" if spec.dataset.test else "train"),
            baselines.quantized,
        )
        evaluation = evaluation_status(
            comparison,
            baselines.base,
            baselines.few_shot,
            tuned,
            gate_results(wish.gates or [], comparison.metrics),
            [
                regression_result(
                    each,
                    self._regression[each.name],
                    baselines.regression[each.name],
                    regression[each.name],
                    spec.training.seed,
                )
                for each in wish.regression or []
            ],
            f"{verdict(comparison, cost(), base_name(baselines.told))}{self._unended(tuned)}",
            baselines.told,
        )
        return Assessment(baselines, tuned, comparison, evaluation)

    def _unended(self, tuned: Measured) -> str:
        """A sentence about answers that never end, with the space before it."""
        advice = {advice.reason for advice in self._prepared.preflight.advice or []}
        return unended(tuned.answers, self._prepared.resolved.max_new_tokens, END_UNTRAINED in advice)

    def _few_shot(self, model: PreTrainedModel, say: Callable[[str], None]) -> FewShot | None:
        if Baseline.FEW_SHOT not in self._spec.evaluation.baselines or not self._asks:
            return None
        tokenizer, longest = self._evaluator.tokenizer, self._prepared.resolved.max_new_tokens
        room = int(min(context(model) - longest, ROOM))
        seed = self._spec.dataset.split.seed
        draws = few_shot_draws(self._prepared.train, self.held_out, prompt_format(tokenizer), tokenizer, room, seed)
        if not draws:
            print(why_none(self._prepared.train, self.held_out, room, seed), flush=True)
            return None
        return self._evaluator.prompted(model, self.held_out, draws, say)

    def _measure_regression(self, what: str, model: PreTrainedModel) -> dict[str, Measured]:
        found = {}
        for wish in self._spec.evaluation.regression or []:
            rows = self._regression[wish.name]
            # Its answers may be longer than those of the task.
            longest = self._spec.evaluation.generation.max_new_tokens or room_for(
                [len(row.input_ids) - row.prompt_length for row in rows]
            )
            found[wish.name] = self._evaluator.up_to(longest).measure(
                f"{what} on regression set {wish.name}", model, rows, wish.metric not in LIKELIHOODS
            )
        return found

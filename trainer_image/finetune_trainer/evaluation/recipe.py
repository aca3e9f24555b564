"""The whole evaluation: measure the base model before training and the tuned model after it, compare, and judge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedModel

from finetune_api.bundle import Bundle
from finetune_api.spec.evaluation import Baseline
from finetune_api.status.evaluation import Evaluation, Merged, Quantized
from finetune_trainer.evaluation.gates import gate_results, regression_result
from finetune_trainer.evaluation.generation import context
from finetune_trainer.evaluation.kept_answers import KeptAnswers
from finetune_trainer.evaluation.quantized import base_name, compare_quantized, only_quantized
from finetune_trainer.evaluation.scoring import Evaluator, Remember, measure_now
from finetune_trainer.evaluation.status import evaluation_status
from finetune_trainer.evaluation.verdict import Cost, unended, verdict
from finetune_trainer.handover.few_shot import few_shot_draws, why_none
from finetune_trainer.handover.mixing import draw_rows
from finetune_trainer.handover.prepared import Example, Prepared
from finetune_trainer.metrics.values import LIKELIHOODS
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.preflight.advice.concerns import END_UNTRAINED
from finetune_trainer.preflight.resolve import room_for
from finetune_trainer.statistics.comparison import Comparison, compare
from finetune_trainer.statistics.measurements import FewShot, Measured, Measurements
from finetune_trainer.tokens.render import prompt_format

ROOM = 16_384
"""Longest few-shot prompt in tokens, for models with a longer context. The key-value cache of longer prompts would fill
a GPU."""


@dataclass(frozen=True, eq=False)
class Baselines:
    """Measurements of the base model."""

    base: Measured
    few_shot: FewShot | None
    """None if the job does not ask for it, or no example fits into the model's context."""
    regression: Mapping[str, Measured]
    """By name of the regression set."""
    quantized: Measured | None = None
    """Under QLoRA the base model in 4 bits, without answers, if `base` is the base model in bf16."""
    shortage: str | None = None
    """Under QLoRA the reason why `base` is the base model in 4 bits."""

    @property
    def seconds(self) -> float:
        """Duration of all measurements."""
        every = [self.base, self.few_shot, self.quantized, *self.regression.values()]
        return sum(each.seconds for each in every if each)

    @property
    def told(self) -> Quantized | None:
        """status.evaluation.quantized; None without QLoRA."""
        if self.quantized:
            return compare_quantized(self.base, self.quantized)
        return only_quantized(self.base, self.shortage) if self.shortage else None


@dataclass(frozen=True, eq=False)
class Assessment:
    """All results of the evaluation."""

    baselines: Baselines
    tuned: Measured
    comparison: Comparison
    evaluation: Evaluation
    """status.evaluation, with the verdict."""

    def with_merged(self, merged: Merged) -> "Assessment":
        """Returns a copy with the result of the merge."""
        return replace(self, evaluation=self.evaluation.model_copy(update={"merged": merged}))


class Assessor:
    """Measures every model of a job on the same rows."""

    def __init__(self, bundle: Bundle, prepared: Prepared, evaluator: Evaluator) -> None:
        """Raises ValueError if `prepared` names no metric."""
        if not prepared.resolved.metrics:
            raise ValueError("status.resolved.metrics contains no metric")
        self._spec, self._prepared, self._evaluator = bundle.spec, prepared, evaluator
        wish, seed = bundle.spec.evaluation, bundle.spec.dataset.split.seed
        self.held_out: Sequence[Example] = draw_rows(prepared.test, wish.max_rows, seed)
        self._regression = {name: draw_rows(rows, wish.max_rows, seed) for name, rows in prepared.regression.items()}
        self._metrics = prepared.resolved.metrics

    @property
    def _asks(self) -> bool:
        """Whether any metric needs the models' answers."""
        return not set(self._metrics) <= set(LIKELIHOODS)

    def baselines(
        self,
        model: PreTrainedModel,
        say: Callable[[str], None],
        remember: Remember = measure_now,
        called: str = "the base model",
    ) -> Baselines:
        """Measures the base model. Calls `say` with `called`, and with the name of each few-shot draw, before it
        starts."""

        def measure(kept: KeptAnswers | None) -> Measured:
            say(called)
            return self._evaluator.measure("the base model", model, self.held_out, self._asks, kept)

        base = remember("rows", "the base model", measure)
        few_shot = self._few_shot(model, say, remember)
        return Baselines(base, few_shot, self._measure_regression("the base model", model, remember))

    def beside_quantized(self, baselines: Baselines, model: PreTrainedModel) -> Baselines:
        """Returns `baselines` with the loss of `model`, the base model in 4 bits.

        It writes no answers: generation takes long, and nobody would serve this model if the base model in bf16
        fits."""
        found = self._evaluator.measure("the base model in 4 bits", model, self.held_out, answers=False)
        return replace(baselines, quantized=found)

    def assess(
        self,
        model: PreTrainedModel,
        baselines: Baselines,
        cost: Callable[[], Cost | None],
        remember: Remember = measure_now,
    ) -> Assessment:
        """Measures the tuned model and compares it with the baselines. `cost`: called after the measurement; returns
        the cost until then, or None if nothing was trained."""

        def measure(kept: KeptAnswers | None) -> Measured:
            print(f"Answering {len(self.held_out):,} held-out rows with the tuned model.", flush=True)
            return self._evaluator.measure("the tuned model", model, self.held_out, self._asks, kept)

        tuned = remember("rows", "the tuned model", measure)
        regression = self._measure_regression("the tuned model", model, remember)
        phase("comparing the models")
        spec, wish = self._spec, self._spec.evaluation
        measured = Measurements(baselines.base, tuned, baselines.few_shot, baselines.quantized)
        comparison = compare(
            self.held_out,
            measured,
            self._metrics,
            self._prepared.answers,
            seed=spec.training.seed,
            sources=spec.dataset.source_names("test" if spec.dataset.test else "train"),
        )
        evaluation = evaluation_status(
            comparison,
            measured,
            gates=gate_results(wish.gates or [], comparison.metrics),
            regression=[
                regression_result(
                    each,
                    self._regression[each.name],
                    baselines.regression[each.name],
                    regression[each.name],
                    spec.training.seed,
                )
                for each in wish.regression or []
            ],
            verdict=f"{verdict(comparison, cost(), base_name(baselines.told))}{self._unended(tuned)}",
            quantized=baselines.told,
        )
        return Assessment(baselines, tuned, comparison, evaluation)

    def _unended(self, tuned: Measured) -> str:
        """Returns a sentence about answers that never end, with a space before it, or ""."""
        advice = {advice.reason for advice in self._prepared.preflight.advice or []}
        return unended(tuned.answers, self._prepared.resolved.max_new_tokens, END_UNTRAINED in advice)

    def _few_shot(self, model: PreTrainedModel, say: Callable[[str], None], remember: Remember) -> FewShot | None:
        if Baseline.FEW_SHOT not in self._spec.evaluation.baselines or not self._asks:
            return None
        tokenizer, longest = self._evaluator.tokenizer, self._prepared.resolved.max_new_tokens
        room = int(min(context(model) - longest, ROOM))
        seed = self._spec.dataset.split.seed
        phase("choosing few-shot examples")
        draws = few_shot_draws(self._prepared.train, self.held_out, prompt_format(tokenizer), tokenizer, room, seed)
        if not draws:
            print(why_none(self._prepared.train, self.held_out, room, seed), flush=True)
            return None
        return self._evaluator.prompted(model, self.held_out, draws, say, remember)

    def _measure_regression(self, what: str, model: PreTrainedModel, remember: Remember) -> dict[str, Measured]:
        found = {}
        for number, wish in enumerate(self._spec.evaluation.regression or [], start=1):
            rows = self._regression[wish.name]
            # Answers of a regression set may be longer than answers of the task.
            longest = self._spec.evaluation.generation.max_new_tokens or room_for(
                [len(row.input_ids) - row.prompt_length for row in rows]
            )
            on = f"{what} on regression set {wish.name}"
            measure = partial(self._evaluator.up_to(longest).measure, on, model, rows, wish.metric not in LIKELIHOODS)
            found[wish.name] = remember(f"regression{number}", on, measure)
        return found

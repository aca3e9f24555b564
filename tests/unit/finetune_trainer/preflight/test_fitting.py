"""What a job is told that fits no GPU type which it may use: the settings that would fit, the cheapest first."""

import re
from typing import Any

import pytest

from finetune_api.reasons import FailureReason
from finetune_api.spec.gpu_type import GpuType
from finetune_api.spec.job import FineTuneJobSpec
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.fitting import require_fit, require_gpu_type
from finetune_trainer.preflight.prediction import estimates
from tests.unit.finetune_trainer.preflight.test_prediction import DATA, FULL, LORA, QLORA, SHAPE, resolved, spec

L4 = GpuType(name="l4", memory="18Gi", price_per_hour="0.80")
H100 = GpuType(name="h100", memory="81559Mi", price_per_hour="2.50")
T4 = GpuType(name="t4", memory="2Gi", price_per_hour="0.35")


def said(gpus: list[GpuType], method: Any = LORA, **parts: Any) -> tuple[str, str | None]:
    """The finding after the facts about the job, and the remedy if it is not that of DoesNotFit."""
    wish = spec(**parts)
    with pytest.raises(TrainerFailure) as caught:
        check(gpus, wish, method)
    assert caught.value.reason is FailureReason.DOES_NOT_FIT
    return caught.value.finding.partition(" tokens. ")[2], caught.value.remedy


def check(gpus: list[GpuType], wish: FineTuneJobSpec, method: Any = LORA) -> None:
    found = estimates(gpus, wish, resolved(method), SHAPE, DATA)
    require_fit(found, gpus, wish, resolved(method), SHAPE, DATA)


def test_a_job_that_fits_one_type_goes_on_unless_it_names_another() -> None:
    check([L4, H100], spec())
    check([L4, H100], spec(compute={"gpuType": "h100"}))
    found, _ = said([L4, H100], compute={"gpuType": "l4"})
    assert "spec.compute.gpuType h100" in found


def test_the_types_that_a_job_does_not_name_are_offered_with_their_cost() -> None:
    found, remedy = said([L4, H100], compute={"gpuType": "l4"})
    costs = [float(cost) for cost in re.findall(r"cost about ([0-9.]+[0-9])", found)]
    assert len(costs) == 3
    assert costs == sorted(costs)
    assert re.search(r"These settings would fit too, the cheapest first: .+ \([0-9.]+Gi on l4, cost about", found)
    for way in ("spec.compute.gpuType h100", "spec.method.type QLoRA", "spec.training.maxSequenceLength"):
        assert way in found
    assert remedy is None


def test_without_a_known_time_the_price_of_an_hour_orders_the_ways() -> None:
    small, large = (
        GpuType(name="a", memory="18Gi", price_per_hour="9"),
        GpuType(name="b", memory="80Gi", price_per_hour="1"),
    )
    found, _ = said([small, large], compute={"gpuType": "a"})
    assert found.startswith("With spec.compute.gpuType b, the job would need ")
    assert "the cheapest first: spec.method.type QLoRA (" in found
    assert "cost about" not in found


def test_without_a_price_the_ways_that_change_least_come_first() -> None:
    found, _ = said([GpuType(name="l4", memory="18Gi")])
    assert re.match(
        r"With spec.method.type QLoRA, the job would need [0-9.]+Gi. These settings would fit too: "
        r"spec.compute.gpusPerNode 2 \([0-9.]+Gi on l4\); "
        r"spec.training.maxSequenceLength [0-9,]+ \([0-9.]+Gi on l4\)\.$",
        found,
    ), found


def test_full_fine_tuning_is_offered_the_other_optimizer_and_the_adapters() -> None:
    found, _ = said([GpuType(name="h200", memory="120Gi")], FULL)
    assert found.startswith("With spec.training.optimizer PagedAdamW8bit, the job would need ")
    assert "spec.method.type LoRA (" in found


def test_a_larger_type_can_need_another_method_too() -> None:
    found, _ = said([T4, L4], compute={"gpuType": "t4"})
    assert "With spec.compute.gpuType l4 and spec.method.type QLoRA, the job would need " in found


def test_merging_can_be_all_that_does_not_fit() -> None:
    merged = {"output": {"uri": "o", "merge": True}}
    found, _ = said([GpuType(name="a10", memory="16Gi")], QLORA, **merged)
    assert found.startswith("Without spec.output.merge, the job would need ")
    found, _ = said([T4, GpuType(name="a10", memory="16Gi")], QLORA, compute={"gpuType": "t4"}, **merged)
    assert found.startswith("With spec.compute.gpuType a10 and without spec.output.merge, the job would need ")


def test_a_job_that_fits_nothing_is_told_so() -> None:
    assert said([T4]) == (
        "No method would fit.",
        "Choose a smaller model, or use a FineTuneProfile with a larger GPU.",
    )


def test_a_name_that_the_bundle_does_not_have_is_refused_with_the_names_it_has() -> None:
    require_gpu_type(spec(), [])
    require_gpu_type(spec(compute={"gpuType": "l4"}), [L4])
    with pytest.raises(TrainerFailure, match=r'has no GPU type "l4"\. Its GPU types are h100') as caught:
        require_gpu_type(spec(compute={"gpuType": "l4"}), [H100])
    assert caught.value.reason is FailureReason.SPEC_INVALID


MIG = GpuType(name="slice", resource_name="nvidia.com/mig-3g.40gb", memory="40Gi", price_per_hour="1.00")
SHARED = GpuType(name="part", resource_name="nvidia.com/gpu.shared", memory="81559Mi")
SHARED_MIG = GpuType(name="both", resource_name="nvidia.com/mig-1g.10gb.shared", memory="10Gi")
NAMED_LIKE_MIG = GpuType(name="mig-like", resource_name="mig-lab.example/gpu", memory="81559Mi")


@pytest.mark.parametrize("part", [MIG, SHARED, SHARED_MIG])
def test_several_gpus_of_a_type_that_is_a_part_of_a_gpu_are_refused(part: GpuType) -> None:
    require_gpu_type(spec(compute={"gpuType": part.name, "gpusPerNode": 1}), [part, H100])
    for compute, gpus in (({"gpuType": part.name}, [part, H100]), ({}, [part])):
        with pytest.raises(TrainerFailure, match=r"^spec\.compute\.gpusPerNode is 2, but ") as caught:
            require_gpu_type(spec(compute={"gpusPerNode": 2, **compute}), gpus)
        assert caught.value.reason is FailureReason.SPEC_INVALID
        assert f": {part.name} ({part.resource_name}). " in caught.value.message
        assert "Set spec.compute.gpusPerNode to 1" in caught.value.message


def test_several_gpus_use_the_types_that_are_whole_gpus() -> None:
    require_gpu_type(spec(compute={"gpusPerNode": 2}), [MIG, H100])
    require_gpu_type(spec(compute={"gpusPerNode": 2}), [NAMED_LIKE_MIG])
    found, _ = said([MIG, SHARED, T4, L4], compute={"gpusPerNode": 2, "gpuType": "t4"})
    assert "spec.compute.gpuType l4" in found
    assert "slice" not in found
    assert "spec.compute.gpuType part" not in found


def test_more_gpus_are_offered_with_the_cost_of_all_of_them() -> None:
    small = GpuType(name="a10g", memory="16Gi", price_per_hour="1.00")
    found, _ = said([small])
    cost = re.search(r"spec\.compute\.gpusPerNode 2 \(([0-9.]+)Gi on a10g, cost about ([0-9.]+[0-9])\)", found)
    assert cost, found
    both = spec(compute={"gpusPerNode": 2})
    (estimate,) = estimates([small], both, resolved(LORA), SHAPE, DATA)
    assert estimate.sharded
    assert estimate.cost
    assert float(cost[2]) == pytest.approx(float(estimate.cost), rel=0.2)


def test_parts_of_a_gpu_are_not_offered_in_larger_numbers() -> None:
    found, _ = said([GpuType(name="slice", resource_name="nvidia.com/mig-1g.16gb", memory="16Gi")])
    assert "gpusPerNode" not in found


@pytest.mark.parametrize(
    ("method", "parts", "what"),
    [
        (QLORA, {}, "4-bit weights"),
        (FULL, {"training": {"optimizer": "PagedAdamW8bit"}}, "the state of spec.training.optimizer PagedAdamW8bit"),
    ],
)
def test_a_job_on_several_gpus_is_told_why_its_weights_cannot_be_sharded(
    method: Any, parts: dict[str, Any], what: str
) -> None:
    found, _ = said([GpuType(name="a", memory="6Gi")], method, compute={"gpusPerNode": 4}, **parts)
    assert found.startswith(f"Each of the 4 GPUs needs this memory, because {what} cannot be sharded. ")


def test_sharded_weights_fit_more_gpus_and_a_job_that_has_enough_goes_on() -> None:
    small = GpuType(name="a10g", memory="16Gi")
    check([small], spec(compute={"gpusPerNode": 4}))
    found, _ = said([small], FULL, compute={"gpusPerNode": 4})
    assert "spec.method.type LoRA, the job would need" in found


def test_more_gpus_on_each_of_several_nodes_are_offered_with_the_cost_of_all_nodes() -> None:
    small = GpuType(name="a10g", memory="10Gi", price_per_hour="1.00")
    found, _ = said([small], compute={"nodes": 2})
    told = re.search(r"spec\.compute\.gpusPerNode (\d) \(([0-9.]+)Gi on a10g, cost about ([0-9.]+[0-9])\)", found)
    assert told, found
    (estimate,) = estimates(
        [small], spec(compute={"nodes": 2, "gpusPerNode": int(told[1])}), resolved(LORA), SHAPE, DATA
    )
    assert estimate.fits
    assert estimate.sharded
    assert estimate.cost
    assert float(told[3]) == pytest.approx(float(estimate.cost), rel=0.2)

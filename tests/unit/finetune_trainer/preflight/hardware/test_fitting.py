"""What a job is told that fits no GPU type which it may use: the settings that would fit, the cheapest first."""

import re
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.reasons import FailureReason
from finetune_api.spec.gpu_type import GpuType
from finetune_api.spec.job import FineTuneJobSpec
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.hardware.changes import changes
from finetune_trainer.preflight.hardware.fitting import require_fit, require_gpu_type
from finetune_trainer.preflight.hardware.prediction import estimates, loads, more_gpus, setups_of
from finetune_trainer.sizing.memory import predict
from finetune_trainer.sizing.model_shape import ModelShape
from tests.unit.finetune_trainer.preflight.hardware.test_prediction import (
    DATA,
    FULL,
    LORA,
    QLORA,
    SHAPE,
    resolved,
    spec,
)

L4 = GpuType(name="l4", memory="18Gi", price_per_hour="0.80")
H100 = GpuType(name="h100", memory="81559Mi", price_per_hour="2.50")
T4 = GpuType(name="t4", memory="2Gi", price_per_hour="0.35")


def said(gpus: list[GpuType], method: Any = LORA, shape: ModelShape = SHAPE, **parts: Any) -> tuple[str, str | None]:
    """The finding after the facts about the job, and the remedy if it is not that of DoesNotFit."""
    wish = spec(**parts)
    with pytest.raises(TrainerFailure) as caught:
        check(gpus, wish, method, shape)
    assert caught.value.reason is FailureReason.DOES_NOT_FIT
    return caught.value.finding.partition(" tokens. ")[2], caught.value.remedy


def check(gpus: list[GpuType], wish: FineTuneJobSpec, method: Any = LORA, shape: ModelShape = SHAPE) -> None:
    found = estimates(gpus, wish, resolved(method), shape, DATA)
    require_fit(found, gpus, wish, resolved(method), shape, DATA)


def least(method: Any = LORA, **compute: int) -> int:
    """The bytes that each GPU of such a job needs at least."""
    wish = spec(compute=compute)
    return predict(SHAPE, setups_of(wish, resolved(method), SHAPE)[-1], loads(DATA, 8, resolved(method))[-1]).total


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
    small = GpuType(name="a10g", memory="17Gi", price_per_hour="1.00")
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
    small = GpuType(name="a10g", memory="11Gi", price_per_hour="1.00")
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


@pytest.mark.parametrize("method", [LORA, FULL])
@pytest.mark.parametrize(
    ("now", "needed", "way"),
    [
        ({"gpusPerNode": 8}, {"gpusPerNode": 8, "nodes": 2}, "spec.compute.nodes 2"),
        ({"gpusPerNode": 8, "nodes": 2}, {"gpusPerNode": 8, "nodes": 4}, "spec.compute.nodes 4"),
        ({"gpusPerNode": 1}, {"gpusPerNode": 8, "nodes": 2}, "spec.compute.gpusPerNode 8 and spec.compute.nodes 2"),
        ({"gpusPerNode": 16}, {"gpusPerNode": 16, "nodes": 16}, "spec.compute.nodes 16"),
        # of equal numbers the fewest nodes
        ({"gpusPerNode": 1}, {"gpusPerNode": 8}, "spec.compute.gpusPerNode 8"),
        ({"nodes": 2}, {"gpusPerNode": 2, "nodes": 2}, "spec.compute.gpusPerNode 2"),
    ],
)
def test_as_few_more_gpus_as_possible_are_offered_on_more_nodes_if_one_has_too_few(
    method: Any, now: dict[str, int], needed: dict[str, int], way: str
) -> None:
    small = GpuType(name="a10g", memory=str(least(method, **needed)), price_per_hour="1.00")
    found, _ = said([small], method, compute=now)
    told = [each for each in re.findall(r"spec\.compute\.[^(,]+?(?= \(|,)", found) if "gpuType" not in each]
    assert told == [way], found
    (estimate,) = estimates([small], spec(compute=needed), resolved(method), SHAPE, DATA)
    assert (estimate.fits, estimate.sharded) == (True, True)


@pytest.mark.parametrize("method", [LORA, FULL])
def test_more_gpus_on_fewer_nodes_are_offered_before_fewer_gpus_over_a_network_that_cost_more(method: Any) -> None:
    memory, wish = least(method, gpusPerNode=3, nodes=2), spec(compute={"gpusPerNode": 3})
    small = GpuType(name="a10g", memory=str(memory), price_per_hour="1.00")
    setup, longest = setups_of(wish, resolved(method), SHAPE)[-1], loads(DATA, 8, resolved(method))[-1]
    offered = [each.compute for each in changes(SHAPE, setup, longest, memory, 0, more_gpus(wish, small))]
    ways = [{"gpusPerNode": each.gpus_per_node, "nodes": each.nodes} for each in offered if each]
    assert ways == [{"gpusPerNode": 8, "nodes": 1}, {"gpusPerNode": 3, "nodes": 2}]
    costs = [estimates([small], spec(compute=way), resolved(method), SHAPE, DATA)[0].cost for way in ways]
    assert float(costs[0] or 0) < float(costs[1] or 0)
    found, _ = said([small], method, compute={"gpusPerNode": 3})
    assert "spec.compute.gpusPerNode 8 (" in found
    assert "spec.compute.nodes" not in found, "it is not among the three cheapest"


@pytest.mark.parametrize("place", [{"model": {"uri": "pvc://c/m"}}, {"output": {"uri": "pvc://c/o"}}])
def test_more_nodes_are_not_offered_if_one_node_alone_may_be_able_to_mount_a_claim(place: dict[str, Any]) -> None:
    small = GpuType(name="a10g", memory=str(least(gpusPerNode=8, nodes=2)))
    assert "spec.compute.nodes 2" in said([small], compute={"gpusPerNode": 8})[0]
    assert "spec.compute" not in said([small], compute={"gpusPerNode": 8}, **place)[0]
    smaller = GpuType(name="a10g", memory=str(least(gpusPerNode=8, nodes=4)))
    several = {"gpusPerNode": 8, "nodes": 2}
    assert "spec.compute.nodes 4" in said([smaller], compute=several, **place)[0], "several nodes mount it already"


@pytest.mark.parametrize("method", [LORA, FULL])
def test_a_model_whose_layers_are_not_known_is_never_sharded_and_gets_no_more_gpus(method: Any) -> None:
    unknown, small = replace(SHAPE, layered=False), GpuType(name="a10g", memory="40Gi")
    four, wish = {"gpusPerNode": 4}, spec(compute={"gpusPerNode": 4})
    memory = least(method, **four)
    (sharded,) = estimates([GpuType(name="a", memory=str(memory))], wish, resolved(method), SHAPE, DATA)
    (whole,) = estimates([GpuType(name="a", memory=str(memory))], wish, resolved(method), unknown, DATA)
    assert (sharded.fits, whole.fits) == (True, False)
    small = GpuType(name="a10g", memory=str(memory))
    assert "spec.compute.gpusPerNode" in said([small], method)[0]
    for compute in ({}, four):
        found, _ = said([small], method, unknown, compute=compute)
        assert "spec.compute" not in found
    assert found.startswith("Each of the 4 GPUs needs this memory, because a model whose layers are not known ")
    large = GpuType(name="large", memory="200Gi")
    check([small, large], wish, method, unknown)

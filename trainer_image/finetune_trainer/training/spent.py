"""The GPU time of a training and its price. An earlier attempt or job may have had other GPUs than this one."""

from dataclasses import dataclass

import torch

from finetune_api.bundle import Bundle


@dataclass(frozen=True)
class Machine:
    """The GPUs of an attempt."""

    gpus: int = 0
    """On all nodes; 0 on a CPU."""
    price_per_hour: str | None = None
    """Price of one of them as a decimal string; None if the profile names none."""


CPU = Machine()


@dataclass(frozen=True)
class Spent:
    """What a training has used until now."""

    gpu_seconds: float = 0.0
    cost: float | None = 0.0
    """None if an attempt had GPUs without a price."""

    def more(self, seconds: float, machine: Machine) -> "Spent":
        """Returns the sum of this and `seconds` on `machine`."""
        gpu_seconds, cost = seconds * machine.gpus, self.cost
        if machine.gpus and cost is not None:
            price = machine.price_per_hour
            cost = None if price is None else cost + gpu_seconds / 3600 * float(price)
        return Spent(self.gpu_seconds + gpu_seconds, cost)


def machine_of(bundle: Bundle, device: torch.device) -> Machine:
    """Returns the GPUs of this attempt. `device`: the one that trains."""
    if device.type != "cuda":
        return CPU
    return Machine(bundle.spec.compute.gpus, next((gpu.price_per_hour for gpu in bundle.gpu_types), None))

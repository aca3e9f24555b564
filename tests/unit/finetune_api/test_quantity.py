"""Amounts of memory, as Kubernetes writes them."""

import pytest

from finetune_api.quantity import bytes_of, gibibytes, times


@pytest.mark.parametrize(
    ("quantity", "size"),
    [
        ("80Gi", 80 * 2**30),
        ("81559Mi", 81559 * 2**20),
        ("24G", 24 * 10**9),
        ("0.5Ti", 2**39),
        (".5Ti", 2**39),
        ("1073741824", 2**30),
        ("1073741824000m", 2**30),
        ("24e9", 24 * 10**9),
        ("24e+009", 24 * 10**9),
        ("1E", 10**18),
        ("5000000000000000n", 5_000_000),
    ],
)
def test_quantities_are_read(quantity: str, size: int) -> None:
    assert bytes_of(quantity) == size


@pytest.mark.parametrize("text", ["", "80GB", "80 Gi", "80gi", "-1Gi", "Gi", "."])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write for example 80Gi"):
        bytes_of(text)


@pytest.mark.parametrize(
    ("cpu", "of_four"), [("2", "8"), ("500m", "2"), ("250000u", "1"), ("125000000n", "0.5"), ("1e1", "40")]
)
def test_a_pod_with_several_gpus_gets_the_cpu_of_each(cpu: str, of_four: str) -> None:
    assert times(4, cpu) == of_four


def test_sizes_are_shown_to_a_tenth() -> None:
    assert gibibytes(23 * 10**9) == "21.4Gi"

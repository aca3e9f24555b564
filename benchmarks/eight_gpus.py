"""Calculates what eight GPUs of one node should do, with the formulas of preflight. Nothing is measured.

    python -m benchmarks.eight_gpus

It prints every step of the calculation for two jobs on NVIDIA H100 80GB SXM: an 8B model with a whole copy on each GPU
(DDP), and a 70B model with sharded weights (FSDP2). docs/benchmarks.md has the figures and the assumptions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.one_row import one_row
from finetune_api.quantity import bytes_of, gibibytes
from finetune_trainer.sizing.memory import Load, Setup, adapter_parameters, first_fit
from finetune_trainer.sizing.model_shape import ModelShape, model_shape
from finetune_trainer.sizing.run_time import UTILISATION, peak_flops, training_flops, training_seconds
from finetune_trainer.sizing.traffic import INTERCONNECT, Layout, gathering_seconds

GPU, MEMORY = "h100", "81559Mi"
NVLINK = 450e9
"""Bytes per second that an H100 SXM sends over NVLink, and as many that it receives: half of the 900 GB/s of NVIDIA's
data sheet, which counts both directions."""
GPUS = 8
TOKENS, ROWS = 4096, 64
"""Tokens of a row and of a micro-batch, and rows of a step. All tokens are trained."""
VOCABULARY, HEAD = 128_256, 128
"""Of all models of Llama 3.1."""


@dataclass(frozen=True)
class Case:
    """A job on eight GPUs. The sizes are those of the model's config.json."""

    name: str
    layers: int
    hidden: int
    inner: int
    shards: int

    def shape(self) -> ModelShape:
        """Returns the shape of the model, which has eight heads for keys and values."""
        hidden, inner, narrow = self.hidden, self.inner, 8 * HEAD
        block = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (narrow, hidden),
            "self_attn.v_proj": (narrow, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        sizes: dict[str, tuple[int, ...]] = {
            f"model.layers.{layer}.{name}.weight": size for layer in range(self.layers) for name, size in block.items()
        }
        sizes |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (VOCABULARY, hidden))
        config = {
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": hidden // HEAD,
            "num_key_value_heads": 8,
            "vocab_size": VOCABULARY,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }
        return model_shape(config, sizes | {"model.norm.weight": (hidden,)})


CASES = [
    Case("Llama-3.1-8B, LoRA of rank 16, DDP", layers=32, hidden=4096, inner=14336, shards=1),
    Case("Llama-3.1-70B, LoRA of rank 16, FSDP2", layers=80, hidden=8192, inner=28672, shards=GPUS),
]


def main() -> None:
    """Prints the calculation of each case."""
    for case in CASES:
        print(f"{case.name}, {GPUS} x {GPU} (calculated, not measured)")
        for what, value in steps(case):
            print(f"  {what:<60}{value:>22}")


def steps(case: Case) -> Iterator[tuple[str, str]]:
    """Yields each quantity of the calculation with its value and unit."""
    shape, peak = case.shape(), peak_flops([GPU])
    assert peak
    wishes = [Setup(shards=case.shards, checkpointing=on, ranks=GPUS) for on in (False, True)]
    plan = first_fit(shape, wishes, [Load(TOKENS, TOKENS)], bytes_of(MEMORY))
    assert plan, "the job does not fit"
    setup, batches, layout = plan.setup, ROWS // GPUS, Layout(GPUS)
    micro = one_row(TOKENS, steps=0)  # the sum of the gradients is calculated below, for NVLink
    flops = training_flops(shape, setup, micro)
    computing, whole = flops / (peak * UTILISATION["LoRA"]), training_seconds(shape, setup, micro, peak, layout)
    yield "parameters of the model", f"{shape.parameters / 1e9:.2f} billion"
    yield "parameters of the adapter", f"{adapter_parameters(shape, setup) / 1e6:.1f} million"
    yield "gradient checkpointing", "on" if setup.checkpointing else "off"
    yield "memory of a GPU", gibibytes(plan.memory.total)
    yield f"operations of a micro-batch of {TOKENS:,} tokens", f"{flops / 1e12:,.0f} TFLOP"
    yield f"computing at {UTILISATION['LoRA']:.0%} of {peak / 1e12:.0f} TFLOP/s", f"{computing:.2f} s"
    if setup.shards > 1:
        gathering = 2 * gathering_seconds(shape, setup, layout)
        yield f"gathering the weights twice at {INTERCONNECT / 1e9:.0f} GB/s, meanwhile", f"{gathering:.2f} s"
        yield f"the same at {NVLINK / 1e9:.0f} GB/s", f"{gathering * INTERCONNECT / NVLINK:.2f} s"
    yield "a micro-batch: the longer of the two", f"{whole:.2f} s"
    summing = 2 * (GPUS - 1) / GPUS * 4 * adapter_parameters(shape, setup) / NVLINK
    yield f"summing the fp32 gradients of a step at {NVLINK / 1e9:.0f} GB/s", f"{1e3 * summing:.2f} ms"
    step = batches * whole + summing
    yield f"a step: {batches} micro-batches on each GPU, and the sum", f"{step:.2f} s"
    yield "tokens per second of all GPUs", f"{ROWS * TOKENS / step:,.0f}"
    alone = None if setup.shards > 1 else ROWS * whole
    yield f"speed of {GPUS} GPUs over that of one", f"{alone / step:.2f}" if alone else "does not fit one"


if __name__ == "__main__":
    main()

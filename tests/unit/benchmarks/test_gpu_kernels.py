"""Kernels are counted by kind, and the time without a running kernel is measured."""

import pytest

from benchmarks.gpu.kernels import family, idle


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("nvjet_tst_256x128_64x4_1x2_h_bz_coopA_NTN", "GEMM"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "GEMM"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x256>", "GEMM"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("Memcpy DtoH (Device -> Pinned)", "memcpy"),
        ("Memset (Device)", "memcpy"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("void (anonymous namespace)::softmax_warp_forward<float>", "softmax/loss"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float>>>", "norm"),
        ("void at::native::vectorized_elementwise_kernel<4, rsqrt_kernel_cuda>", "norm"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>",
            "elementwise",
        ),
        ("kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>", "4 bits"),
        ("a kernel of its own", "other"),
    ],
)
def test_a_kernels_name_decides_its_kind(kernel: str, expected: str) -> None:
    assert family(kernel) == expected


def test_idle_is_the_time_in_which_no_kernel_runs() -> None:
    assert idle([(10, 20), (30, 40)]) == pytest.approx(1 / 3)
    assert idle([(30, 40), (10, 25), (12, 20)]) == pytest.approx(5 / 30), "those that overlap count once"
    assert idle([(10, 20)]) == 0
    assert idle([]) == 0

"""Kinds of kernels, and one step taken apart."""

import gzip
import json
import random
from dataclasses import replace
from itertools import groupby

import pytest

from benchmarks.speed import cases
from benchmarks.speed.profiling import compare as profiling
from benchmarks.speed.profiling.kinds import kind_of
from benchmarks.speed.profiling.recorder import Kernel, longest_waits, peak_flops
from tests.speed.conftest import TINY


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_256x128_64x4_2x1_v_bz_coopA_NNT", "matrix products"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16>", "matrix products"),
        ("aten::mm", "matrix products"),
        ("aten::mul", "elementwise"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<cutlass::bfloat16_t>>", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>(float*, unsigned char*)", "4-bit weights"),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
            "copies, fills",
        ),
        ("Memcpy DtoD (Device -> Device)", "copies, fills"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<c10::BFloat16>>", "elementwise"),
        (
            "void at::native::elementwise_kernel<128, 4, BinaryFunctor<float, MulFunctor<float>>>",
            "elementwise",
        ),
        ("void at::native::reduce_kernel<512, 1, ReduceOp<float, MeanOps<float>>>", "softmax, norms, sums"),
        (
            "void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float, float>",
            "softmax, norms, sums",
        ),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "optimizer, clipping"),
        ("void kOptimizerStatic8bit2StateBlockwise<float, 0, 256, 1>(float*)", "optimizer, clipping"),
        ("autograd::engine::evaluate_function: MulBackward0", "rest"),
        ("MulBackward0", "rest"),
        ("ncclDevKernel_Broadcast", "rest"),
    ],
)
def test_kernels_have_kinds(name, kind):
    assert kind_of(name) == kind


def test_a_step_is_taken_apart(tmp_path):
    trace = tmp_path / "trace.json.gz"
    recorded, seconds = profiling.profile_step(cases.TRL, TINY, None, trace)
    assert any(
        event["name"] == "aten::mm"
        for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    )
    assert 0 < sum(recorded.kinds.values()) <= recorded.seconds
    assert recorded.kinds["matrix products"] > 0 and seconds > 0
    # products of weights: 2 FLOP a weight and token, forwards of policy and reference, and backwards by the
    # activations; the adapter's own, a tenth of that, and attention's come on top
    hidden, intermediate, layers = 256, 704, 4
    weights = layers * (2 * hidden**2 + 2 * hidden * hidden // 2 + 3 * hidden * intermediate) + hidden * 1_000
    per_token = 2 * 3 * weights
    assert 1 < recorded.flops / (per_token * 2 * TINY.micro_batch * 32) < 1.4
    assert "matrix products" in profiling.table(profiling._figures(recorded, seconds, peak_flops(64)))


@pytest.mark.slow
def test_what_comes_before_the_passes_of_a_step_is_of_it():
    # scoring the effective batch can only add to what each micro-batch alone takes
    case = replace(TINY, accumulation=2, cached=True)
    ours, micro = (profiling.profile_step(name, case, None)[0].flops for name in (cases.OURS, cases.MICRO))
    assert ours >= 0.999 * micro


def test_waits_are_the_times_in_which_no_kernel_runs():
    rng = random.Random(0)
    for _ in range(200):
        starts = [rng.randrange(60) for _ in range(rng.randrange(1, 12))]
        kernels = [Kernel(str(i), start, start + rng.randrange(1, 8)) for i, start in enumerate(starts)]
        busy = {time for kernel in kernels for time in range(kernel.start, kernel.end)}
        free = [time for time in range(min(busy), max(busy)) if time not in busy]
        runs = [len(list(run)) for _, run in groupby(enumerate(free), lambda pair: pair[1] - pair[0])]
        waits = longest_waits(kernels, most=100)
        assert [wait.seconds for wait in waits] == sorted(runs, reverse=True)
        by_name = {kernel.name: kernel for kernel in kernels}
        for wait in waits:
            assert by_name[wait.before].start - by_name[wait.after].end == wait.seconds

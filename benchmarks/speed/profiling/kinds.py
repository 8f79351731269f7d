"""Kinds of kernels, by their names: what a step's time is spent on."""

import re

REST = "rest"
# The first that matches. Names of CUDA kernels (cuBLAS, cuDNN, flash-attn, PyTorch, bitsandbytes, Triton),
# and of PyTorch's operations on a CPU, where autograd's nodes are what is left beside these.
KINDS = {
    REST: (r"^autograd::", r"Backward\d+$"),
    "4-bit weights": ("dequant", "quantizeblock", "gemm_4bit", "gemv_4bit"),
    "attention": ("flash", "fmha", "attention", "sdpa", "mem_eff"),
    "matrix products": (
        *("gemm", "gemv", "nvjet", "cutlass", "cublas", "xmma", "splitk", "_cce_", "neg_dot"),
        r"^aten::(b?mm|addmm|addmv|baddbmm|linear|matmul)$",
    ),
    "optimizer, clipping": ("adam", "optimizer", "multi_tensor_apply", "_foreach", "lpnorm"),
    "copies, fills": (
        *("copy", "memcpy", "memset", "gather", "scatter", "index", "fill", "contiguous", "clone"),
        *("embedding", "catarray", "aten::cat", "triton_poi.*_cat_"),
    ),
    "softmax, norms, sums": (
        *("softmax", "norm", "reduce", "sum", "mean", "logsumexp", "max", "triton_red", "triton_per"),
        "cross_entropy",
    ),
    "elementwise": (
        *(
            "elementwise",
            "element_mul",
            "triton_poi",
            "swiglu",
            "geglu",
            "rope",
            "silu",
            "sigmoid",
            "fg_kernel",
        ),
        *("mul", "add", "sub", "div", "exp", "neg", "pow", "sqrt", "sin", "cos"),
    ),
}
_PATTERNS = {kind: re.compile("|".join(patterns), re.IGNORECASE) for kind, patterns in KINDS.items()}


def kind_of(name: str) -> str:
    """The kind of a kernel; REST where no pattern matches."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(name)), REST)

"""What the servers compute on a CPU without AVX-512 and bf16 products, whatever CPU runs these tests."""

import asyncio
import os
import sys
from pathlib import Path

# torch's own kernels and oneDNN's, as such a CPU gets them.
AVX2_ALONE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
TESTS = (
    "tests/brain_server/torch_engine/compute/test_precisions.py",
    "tests/cloning_server/compute/test_linear.py",
    "tests/cloning_server/learning/test_passes.py::test_a_small_model_learns_in_either_precision_and_layout",
)


async def test_serving_and_training_compute_the_same_on_a_cpu_with_avx2_alone() -> None:
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS,
        cwd=Path(__file__).parents[1],
        env=os.environ | AVX2_ALONE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await running.communicate()
    assert running.returncode == 0, output.decode()

"""How well the brain serves: each line of the targets, measured beside what it is compared with, in one run.

    python -m benchmarks.serving [--only NAME ...] [--quick] [--out benchmarks/results]

Prints one JSON line a figure: `{"figure", "value", "unit", "baseline", "ratio", "target", "met", ...}`, after one that
tells the machine. Each section's lines are kept in `OUT/serving-NAME.jsonl`; from all that are there, a table and
pictures are made (the pictures with the `bench` extra). The brain is the real one, in a process of its own, on a real
SeaweedFS; benchmarks/README.md tells the workload and each section's command.
"""

import argparse
import asyncio
import dataclasses
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.arrivals import arrivals
from benchmarks.crowds import registered, switching, working_set
from benchmarks.figures import Figure, Results
from benchmarks.latency import cold, gateway, resident
from benchmarks.mistral import mistral
from benchmarks.stage import Options, Stage, open_stage
from benchmarks.streams import streams
from benchmarks.throughput import adapter_cost, single, students
from mesh import log
from mesh.lm.weights import fetch
from mesh.settings import BaseModelSettings, load_settings

_ROOT = Path(__file__).parents[1]
_SECTIONS: dict[str, Callable[[Stage], AsyncIterator[Figure]]] = {
    section.__name__: section
    for section in (
        students,
        single,
        adapter_cost,
        switching,
        registered,
        working_set,
        resident,
        cold,
        gateway,
        arrivals,
        streams,
        mistral,
    )
}


def main() -> None:
    """Measures and prints."""
    args = _parser().parse_args()
    # Standard output is for figures.
    log.configure(level="warning", form="console", service="benchmark", packages=("benchmarks", "mesh"))
    names = args.only or [name for name in _SECTIONS if name != "mistral" or args.device == "cuda"]
    options = Options(
        quick=args.quick,
        device=args.device,
        dtype=args.dtype,
        registered=tuple(args.registered),
        rates=tuple(args.rates),
        vllm=args.vllm,
        seed=args.seed,
    )
    asyncio.run(_measure(names, options, out=args.out))
    report.write(args.out)


async def _measure(names: Sequence[str], options: Options, *, out: Path) -> None:
    read = load_settings(BaseModelSettings)
    files = fetch(read.base_model, read.model_cache_dir)
    # Whether vLLM is there, not where.
    told = dataclasses.asdict(options) | {"vllm": options.vllm.exists()}
    with tempfile.TemporaryDirectory(prefix="aivo-benchmark-") as folder:
        async with open_stage(Path(folder), files, options=options) as stage:
            for name in names:
                results = Results(
                    out / f"serving-{name}.jsonl", conditions={"section": name, "base_model": files.name, **told}
                )
                async for figure in _SECTIONS[name](stage):
                    results.add(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description="How well the brain serves.")
    parser.add_argument("--only", nargs="+", choices=_SECTIONS, metavar="NAME", help=f"of {', '.join(_SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="show that it works; the figures mean nothing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--registered", type=int, nargs="+", default=(5, 100, 2000), help="3.7 MB of disk each")
    parser.add_argument("--rates", type=float, nargs="+", default=(0.5, 1, 2, 4), help="arrivals a second")
    parser.add_argument("--vllm", type=Path, default=_ROOT / ".venv-vllm/bin/python", help="interpreter with vLLM")
    parser.add_argument("--seed", type=int, default=7)
    return parser


if __name__ == "__main__":
    main()

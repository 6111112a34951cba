"""Speed of the brain: each figure with its target, and with its baseline from the same run.

    python -m benchmarks.serving [--only NAME ...] [--quick] [--out benchmarks/results]

Prints a JSON line that describes the machine, then one JSON line per figure: `{"figure", "value", "unit", "baseline",
"ratio", "target", "met", ...}`. Writes the lines of each section to `OUT/serving-NAME.jsonl`, and renders all files in
OUT as a table and pictures (pictures need the `bench` extra). The brain is the real one, in its own process, on a real
SeaweedFS. benchmarks/README.md describes the workload and the sections.
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
from benchmarks.figures import Figure, Results
from benchmarks.latency import cold, gateway, resident
from benchmarks.many_adapters import registered, switching, working_set
from benchmarks.mistral import mistral
from benchmarks.rig import Options, Rig, open_rig
from benchmarks.streams import streams
from benchmarks.throughput import adapter_cost, single, students
from mesh import log
from mesh.main_brain.files import fetch_main_brain
from mesh.main_brain.roles import roles_folders
from mesh.settings import BaseModelSettings, load_settings

_ROOT = Path(__file__).parents[1]
_SECTIONS: dict[str, Callable[[Rig], AsyncIterator[Figure]]] = {
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
    """Runs the sections and writes the report."""
    args = _parser().parse_args()
    # Logs go to standard error; standard output is for figures.
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
    settings = load_settings(BaseModelSettings)
    files = fetch_main_brain(settings.base_model, settings.model_cache_dir, roles_folders(settings.roles_dir))
    # Results say whether vLLM is installed, not where.
    conditions = {"base_model": files.name, **dataclasses.asdict(options), "vllm": options.vllm.exists()}
    with tempfile.TemporaryDirectory(prefix="aivo-benchmark-") as folder:
        async with open_rig(Path(folder), files, options=options) as rig:
            for name in names:
                results = Results(out / f"serving-{name}.jsonl", conditions={"section": name, **conditions})
                async for figure in _SECTIONS[name](rig):
                    results.add(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description="Measures the speed of the brain."
    )
    parser.add_argument(
        "--only", nargs="+", choices=_SECTIONS, metavar="NAME", help=f"sections to run: {', '.join(_SECTIONS)}"
    )
    parser.add_argument("--quick", action="store_true", help="only check that it works; the figures mean nothing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument(
        "--registered",
        type=int,
        nargs="+",
        default=(5, 100, 2000),
        help="numbers of adapters in the store, for the section of that name; an adapter takes 3.7 MB of disk",
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", default=(0.5, 1, 2, 4), help="arrivals per second, for `arrivals`"
    )
    parser.add_argument(
        "--vllm", type=Path, default=_ROOT / ".venv-vllm/bin/python", help="Python interpreter of vLLM's venv"
    )
    parser.add_argument("--seed", type=int, default=7, help="seed of all random choices")
    return parser


if __name__ == "__main__":
    main()

"""Speed of cloning: fine-tuning compared with a plain PEFT loop, a class of students, and the time to a first reply.

    python -m benchmarks.cloning [--only NAME ...] [--students FILE ...] [--responses N] [--quick] [--out DIR]

Prints a JSON line that describes the machine, then one JSON line per figure, as `benchmarks.serving` does, and writes
them to `OUT/cloning-NAME.jsonl`. A student's file is a StartClone request in JSON. Without files, one student with six
made-up questions is used: enough to check that the benchmark works, too few for figures.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.classes import clones, steps
from benchmarks.cloning_setup import CloningSetup, read_requests
from benchmarks.figures import Figure, Results
from benchmarks.fine_tuning import fine_tuning
from benchmarks.first_reply import first_reply
from cloning_server.learning.passes import Passes
from mesh import log
from mesh.main_brain.base import load_base
from mesh.main_brain.roles import roles_folders
from mesh.settings import BaseModelSettings, load_settings


def main() -> None:
    """Runs the sections and writes the report."""
    args = _parser().parse_args()
    # Logs go to standard error; standard output is for figures.
    log.configure(level="warning", form="console", service="benchmark", packages=("benchmarks", "mesh"))
    settings = load_settings(BaseModelSettings)
    base = load_base(
        settings.base_model,
        cache_dir=settings.model_cache_dir,
        roles_dirs=roles_folders(settings.roles_dir),
        device=args.device,
        dtype=args.dtype,
    )
    dtype = str(base.dtype).removeprefix("torch.")
    setup = CloningSetup(
        base=base,
        passes=Passes(base.model),
        requests=read_requests(args.students),
        quick=args.quick,
        dtype=dtype,
        classes=args.classes,
    )
    sections: dict[str, Callable[[CloningSetup], Iterator[Figure]]] = {
        "fine_tune": partial(fine_tuning, responses=args.responses),
        "steps": steps,
        "clones": clones,
        "first_reply": partial(first_reply, responses=args.responses),
    }
    conditions = {"base_model": base.name, "dtype": dtype, "students": len(args.students), "responses": args.responses}
    for name in args.only or sections:
        conditions |= {"section": name, "quick": args.quick, "device": args.device}
        results = Results(args.out / f"cloning-{name}.jsonl", conditions=conditions)
        for figure in sections[name](setup):
            results.add(figure)
    report.write(args.out)


def _parser() -> argparse.ArgumentParser:
    names = ("fine_tune", "steps", "clones", "first_reply")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cloning", description="Measures the speed of cloning.")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"sections to run: {', '.join(names)}")
    parser.add_argument(
        "--students", type=Path, nargs="+", default=[], help="StartClone requests in JSON, one per file"
    )
    parser.add_argument(
        "--responses", type=int, default=100, help="responses per student, for `fine_tune` and `first_reply`"
    )
    parser.add_argument("--classes", type=int, nargs="+", default=(1, 2, 4, 8), help="numbers of students in a class")
    parser.add_argument("--quick", action="store_true", help="only check that it works; the figures mean nothing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    # Both sides of a comparison use it; `auto` is the dtype that the servers choose on this machine.
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float16", "float32"))
    return parser


if __name__ == "__main__":
    main()

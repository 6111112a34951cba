"""What AIVO bears at its limits: stores that hang, crowds that watch, long histories, the largest orders.

    python -m benchmarks.limits [--only NAME ...] [--quick] [--watchers 2000] [--clones 1500] [--out benchmarks/results]

Prints a JSON line that describes the machine, then one JSON line per figure, for each section. Writes the lines of each
section to `OUT/limits-NAME.jsonl`. Exits with status 1 if a bound is missed. Stores are real, nothing is trained, and
no model but a tiny random one is loaded. benchmarks/README.md describes the sections.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from aivo.brain.v1 import brain_service_pb2 as pb
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.cloning_limits import deletion, orders, watchers
from benchmarks.figures import Figure, Goal, Results, percentiles
from benchmarks.limits_site import Site, open_site
from mesh import log
from mesh.lm.base_files import fetch
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from testing.load.hung_store import STUDENTS, class_behind_proxy
from testing.models.small_models import write_small_llama


async def hung_store(site: Site) -> AsyncIterator[Figure]:
    """Measures the first token while S3 accepts connections and answers nothing: a class asks at once, several times.

    No adapter is in memory, so the base model answers, and each reply must say why.
    """
    rounds = site.pick(10, 2)
    folder = await asyncio.to_thread(_write_small_llama, site)
    async with class_behind_proxy(folder, s3_url=site.s3.url, bucket="hung") as students:
        students.proxy.hang()
        replies = [reply for _ in range(rounds) for reply in (await students.ask_all()).values()]
    seconds = percentiles([reply.first_token_seconds for reply in replies])
    yield Figure(
        figure="first_token_while_s3_hangs",
        value=seconds["p99"],
        unit="s (p99)",
        goal=Goal(of="value", at_most=2),
        facts={**seconds, "students_at_once": STUDENTS, "rounds": rounds},
    )
    unnamed = [reply for reply in replies if not _names_store(reply.finished)]
    yield Figure(
        figure="replies_that_do_not_name_the_store",
        value=len(unnamed),
        unit="replies",
        goal=Goal(of="value", at_most=0),
    )


_SECTIONS: dict[str, Callable[[Site], AsyncIterator[Figure]]] = {
    section.__name__: section for section in (hung_store, watchers, deletion, orders)
}


def main() -> int:
    """Prints the figures; returns 1 if a bound is missed."""
    args = _parser().parse_args()
    # Logs go to standard error; standard output is for figures.
    log.configure(level="warning", form="console", service="benchmark", packages=("benchmarks", "mesh"))
    return 0 if asyncio.run(_measure(args.only or list(_SECTIONS), args)) else 1


async def _measure(names: Sequence[str], args: argparse.Namespace) -> bool:
    """Runs the sections; returns whether all bounds hold."""
    is_met = True
    for name in names:
        conditions = {"section": name, "quick": args.quick, "watchers": args.watchers, "clones": args.clones}
        results = Results(args.out / f"limits-{name}.jsonl", conditions=conditions)
        async with open_site(quick=args.quick, watchers=args.watchers, clones=args.clones) as site:
            async for figure in _SECTIONS[name](site):
                results.add(figure)
                is_met = is_met and figure.met is not False
    return is_met


def _write_small_llama(site: Site) -> Path:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(fetch(DEFAULT_BASE_MODEL, site.models).path)
    return write_small_llama(site.folder / "small-llama", tokenizer)


def _names_store(finished: pb.Finished) -> bool:
    return finished.fallback == pb.FALLBACK_REASON_ADAPTER_STORE_UNAVAILABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description="Measures AIVO at its limits.")
    parser.add_argument(
        "--only", nargs="+", choices=_SECTIONS, metavar="NAME", help=f"sections to run: {', '.join(_SECTIONS)}"
    )
    parser.add_argument("--quick", action="store_true", help="only check that it works; the figures mean nothing")
    parser.add_argument("--watchers", type=int, default=2_000, help="how many watch, for `watchers`")
    parser.add_argument("--clones", type=int, default=1_500, help="how many clones wait, for `watchers`")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

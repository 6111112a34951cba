"""Figures that a benchmark prints and stores: one JSON line per figure, with its baseline and its target.

The first line of a file describes the machine and the conditions of the run.
"""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import torch

# CPU flags that decide the speed of bf16.
_FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
_PACKAGES = ("torch", "transformers", "peft", "grpcio", "safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The target of a figure.

    Attributes:
        of: Whether the target is for the value, or for its ratio to the baseline.
        at_least: Lower bound, or None.
        at_most: Upper bound, or None.
    """

    of: Literal["value", "ratio"]
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        bounds = ((">=", self.at_least), ("<=", self.at_most))
        return f"{self.of} " + " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)

    def is_met(self, number: float) -> bool:
        """Returns whether a number is within the bounds."""
        is_high_enough = self.at_least is None or number >= self.at_least
        return is_high_enough and (self.at_most is None or number <= self.at_most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number.

    Attributes:
        figure: Name of the figure.
        value: The number.
        unit: Unit of the value and of the baseline.
        baseline: The same number for the baseline, measured in the same run; None without a baseline, or if it is not
            installed.
        baseline_of: What the baseline is.
        goal: The target; None for a figure that only explains another one.
        facts: Conditions and details, such as counts and repetitions.
    """

    figure: str
    value: float
    unit: str
    baseline: float | None = None
    baseline_of: str = ""
    goal: Goal | None = None
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """The value divided by the baseline; None without a baseline."""
        return self.value / self.baseline if self.baseline else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target, or if its baseline is missing."""
        if self.goal is None:
            return None
        number = self.value if self.goal.of == "value" else self.ratio
        return None if number is None else self.goal.is_met(number)

    def line(self) -> dict[str, object]:
        """Returns the figure as it is printed."""
        return {
            "figure": self.figure,
            "value": _rounded(self.value),
            "unit": self.unit,
            "baseline": _rounded(self.baseline),
            "baseline_of": self.baseline_of,
            "ratio": _rounded(self.ratio),
            "target": str(self.goal or ""),
            "met": self.met,
            **{name: _rounded(fact) if isinstance(fact, float) else fact for name, fact in self.facts.items()},
        }


class Machine(TypedDict):
    """The machine and the versions on which figures depend."""

    cpu: str
    cores: int | None
    flags: list[str]
    ram_gb: float
    gpu: str | None
    python: str
    versions: dict[str, str]


class Head(TypedDict):
    """The first line of a file."""

    machine: Machine
    # Load average over the minute before the run. Well above 0, another process disturbed the figures.
    load_average: float
    conditions: dict[str, object]
    start_time: str


class Line(TypedDict):
    """A figure read from a file; its other keys are facts."""

    figure: str
    value: float
    unit: str
    baseline: float | None
    baseline_of: str
    ratio: float | None
    target: str
    met: bool | None
    adapters: NotRequired[int]
    arrivals_per_second: NotRequired[float]


class Results:
    """A file of figures; each is printed when it is added.

    Args:
        path: The file; overwritten.
        conditions: Options of the run.
    """

    def __init__(self, path: Path, *, conditions: Mapping[str, object]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        path.write_text("")
        start_time = datetime.now(UTC).isoformat("T", "seconds")
        self._write(
            Head(
                machine=machine(),
                load_average=round(os.getloadavg()[0], 2),
                conditions=dict(conditions),
                start_time=start_time,
            )
        )

    def add(self, figure: Figure) -> None:
        """Prints and stores a figure."""
        self._write(figure.line())

    def _write(self, line: Mapping[str, object]) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        with self._path.open("a") as file:
            file.write(f"{text}\n")


def read_results(path: Path) -> tuple[Head, list[Line]]:
    """Returns the first line of a results file, and its figures."""
    first, *figures = [json.loads(line) for line in path.read_text().splitlines()]
    return first, figures


def machine() -> Machine:
    """Describes this machine."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.partition(":")[::2] for line in info.splitlines() if ":" in line)
    fields = {name.strip(): words.strip() for name, words in fields.items()}
    flags = fields.get("flags", "").split()
    return Machine(
        cpu=fields.get("model name", platform.processor()),
        cores=os.cpu_count(),
        flags=[flag for flag in _FLAGS if flag in flags],
        ram_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        python=platform.python_version(),
        versions={name: version(name) for name in _PACKAGES},
    )


def percentiles(numbers: Sequence[float]) -> dict[str, float]:
    """Returns the 50th, 95th and 99th percentile."""
    if len(numbers) < 2:
        return dict.fromkeys(("p50", "p95", "p99"), numbers[0] if numbers else float("nan"))
    cuts = statistics.quantiles(numbers, n=100, method="inclusive")
    return {"p50": round(cuts[49], 4), "p95": round(cuts[94], 4), "p99": round(cuts[98], 4)}


def _rounded(number: object) -> object:
    return float(f"{number:.4g}") if isinstance(number, float) else number

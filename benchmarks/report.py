"""Makes of a folder of results what people read: a table, and pictures where the `bench` extra is installed."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks import figures
from benchmarks.figures import Line, Machine

# Each benchmark's sections, in the order of the targets; one without a name has the benchmark's own.
_SECTIONS: Mapping[str, Sequence[str]] = {
    "serving": (
        "students", "single", "adapter_cost", "switching", "registered", "working_set", "resident", "cold", "gateway",
        "arrivals", "churn", "streams", "mistral",
    ),
    "cloning": ("fine_tune", "steps", "clones", "first_reply"),
    "chaos": ("",),
}  # fmt: skip
# Each picture's drawing, by what the names of its figures begin with.
_DRAWINGS = {
    "registered_adapters": "draw_registered",
    "working_set_first_token": "draw_working_set",
    "open_loop_first_token": "draw_arrivals",
    "fine_tune_speed": "draw_fine_tuning",
    "class_": "draw_classes",
    "first_reply": "draw_first_replies",
}


def write(folder: Path) -> None:
    """Writes `README.md` and the pictures of what the folder holds: a table for each benchmark."""
    parts = [_part(folder, benchmark, sections) for benchmark, sections in _SECTIONS.items()]
    others = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    text = [line for part in parts for line in part] + [f"More: [{path.stem}]({path.name})." for path in others]
    (folder / "README.md").write_text("\n".join(text).rstrip() + "\n")


def _part(folder: Path, benchmark: str, sections: Sequence[str]) -> list[str]:
    paths = [path for name in sections if (path := folder / f"{benchmark}-{name}.jsonl".replace("-.", ".")).exists()]
    if not paths:
        return []
    results = [figures.read_results(path) for path in paths]
    lines = [line for _, lines in results for line in lines]
    pictures = _draw(folder, benchmark, lines)
    machines = sorted({_describe_machine(first["machine"]) for first, _ in results})
    rows = [
        _row(line, machines.index(_describe_machine(first["machine"])) + 1)
        for first, figure_lines in results
        for line in figure_lines
    ]
    trial = any(first["conditions"].get("quick") for first, _ in results)
    return [
        f"# Results of `python -m benchmarks.{benchmark}`",
        "",
        *(["**A trial (`--quick`): the figures mean nothing.**", ""] if trial else []),
        *(f"{number}. {machine}" for number, machine in enumerate(machines, start=1)),
        "",
        "| figure | value | baseline | ratio | target | met | machine |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        *(f"![{picture.stem}]({picture.name})" for picture in pictures),
        "",
    ]


def _draw(folder: Path, benchmark: str, lines: Sequence[Line]) -> list[Path]:
    if find_spec("matplotlib") is None:
        print("no pictures: they need the `bench` extra")
        return []
    # Only here, as it is an extra.
    from benchmarks import plots  # noqa: PLC0415

    pictures = []
    for figure, drawing in _DRAWINGS.items():
        points = [line for line in lines if line["figure"].startswith(figure)]
        if points:
            pictures.append(folder / f"{benchmark}-{figure.strip('_').replace('_', '-')}.png")
            getattr(plots, drawing)(points, pictures[-1])
    return pictures


def _describe_machine(machine: Machine) -> str:
    flags = ", ".join(machine["flags"]) or "no bf16"
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cpu = f"{machine['cpu']}, {machine['cores']} cores ({flags}), {machine['ram_gb']} GB"
    return f"{cpu}{gpu}; Python {machine['python']}, {versions}."


def _row(line: Line, machine: int) -> str:
    met = {True: "yes", False: "no", None: ""}[line["met"]]
    name = line["figure"].replace("_", " ")
    if "adapters" in line:
        name += f", {line['adapters']} adapters"
    if "arrivals_per_second" in line:
        name += f", {line['arrivals_per_second']:g} arrivals/s"
    baseline = line["baseline_of"] if line["baseline"] is None else f"{line['baseline']:g} ({line['baseline_of']})"
    ratio = "" if line["ratio"] is None else f"{line['ratio']:g}"
    value = f"{line['value']:g} {line['unit']}"
    return f"| {name} | {value} | {baseline} | {ratio} | {line['target']} | {met} | {machine} |"

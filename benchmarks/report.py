"""Renders a folder of results as a table, and as pictures if the `bench` extra is installed."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks import figures
from benchmarks.figures import Line, Machine

# The sections of each benchmark, in the order of the table. A benchmark without sections has one with an empty name.
_SECTIONS: Mapping[str, Sequence[str]] = {
    "serving": (
        "students", "single", "adapter_cost", "switching", "registered", "working_set", "resident", "cold", "gateway",
        "arrivals", "churn", "streams", "mistral",
    ),
    "cloning": ("fine_tune", "steps", "clones", "first_reply"),
    "chaos": ("",),
    "limits": ("hung_store", "watchers", "deletion", "orders"),
    "assessment": ("",),
    "tutoring": ("",),
}  # fmt: skip
# The function of `plots` that draws each picture, by the prefix of its figures' names.
_DRAWINGS = {
    "registered_adapters": "draw_registered",
    "working_set_first_token": "draw_working_set",
    "open_loop_first_token": "draw_arrivals",
    "fine_tune_speed": "draw_fine_tuning",
    "class_": "draw_classes",
    "first_reply": "draw_first_replies",
}
# Names in the table, where that of the figure does not say enough.
_TITLES = {
    "memory_kept_a_stream": "memory kept per stream",
    "strikes": "faults injected",
    "swept": "removed by the sweep",
}


def write(folder: Path) -> None:
    """Writes `README.md`, with a table per benchmark, and pictures, from all results in a folder."""
    chapters = [_chapter(folder, benchmark, sections) for benchmark, sections in _SECTIONS.items()]
    other_reports = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    text = [line for chapter in chapters for line in chapter]
    text += [f"More results: [{path.stem}]({path.name})." for path in other_reports]
    (folder / "README.md").write_text("\n".join(text).rstrip() + "\n")


def _chapter(folder: Path, benchmark: str, sections: Sequence[str]) -> list[str]:
    paths = [path for name in sections if (path := folder / f"{benchmark}-{name}.jsonl".replace("-.", ".")).exists()]
    if not paths:
        return []
    results = [figures.read_results(path) for path in paths]
    lines = [line for _, lines in results for line in lines]
    pictures = _draw(folder, benchmark, lines)
    machines = sorted({_describe_machine(head["machine"]) for head, _ in results})
    rows = [
        _row(line, machines.index(_describe_machine(head["machine"])) + 1)
        for head, figure_lines in results
        for line in figure_lines
    ]
    is_quick = any(head["conditions"].get("quick") for head, _ in results)
    return [
        f"# Results of `python -m benchmarks.{benchmark}`",
        "",
        *(["**A quick run (`--quick`): the figures mean nothing.**", ""] if is_quick else []),
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
        print("no pictures: install the `bench` extra to draw them")
        return []
    # Imported here, because matplotlib is an optional dependency.
    from benchmarks import plots  # noqa: PLC0415

    pictures = []
    for prefix, function_name in _DRAWINGS.items():
        points = [line for line in lines if line["figure"].startswith(prefix)]
        if points:
            pictures.append(folder / f"{benchmark}-{prefix.strip('_').replace('_', '-')}.png")
            getattr(plots, function_name)(points, pictures[-1])
    return pictures


def _describe_machine(machine: Machine) -> str:
    flags = ", ".join(machine["flags"]) or "no bf16"
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cpu = f"{machine['cpu']}, {machine['cores']} cores ({flags}), {machine['ram_gb']} GB"
    return f"{cpu}{gpu}; Python {machine['python']}, {versions}."


def _row(line: Line, machine: int) -> str:
    met = {True: "yes", False: "no", None: ""}[line["met"]]
    name = _TITLES.get(line["figure"], line["figure"].replace("_", " "))
    if "adapters" in line:
        name += f", {line['adapters']} adapters"
    if "arrivals_per_second" in line:
        name += f", {line['arrivals_per_second']:g} arrivals/s"
    baseline = line["baseline_of"] if line["baseline"] is None else f"{line['baseline']:g} ({line['baseline_of']})"
    ratio = "" if line["ratio"] is None else f"{line['ratio']:g}"
    value = f"{line['value']:g} {line['unit']}"
    return f"| {name} | {value} | {baseline} | {ratio} | {line['target']} | {met} | {machine} |"

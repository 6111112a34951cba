"""Makes of a folder of results what people read: a table, and pictures where the `bench` extra is installed."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks import figures
from benchmarks.figures import Line, Machine

_DRAWN = {
    "registered_adapters": "draw_registered",
    "working_set_first_token": "draw_working_set",
    "open_loop_first_token": "draw_arrivals",
}


def write(folder: Path, *, sections: Sequence[str]) -> None:
    """Writes `README.md` and the pictures of what the folder holds of these sections, in their order."""
    paths = [path for name in sections if (path := folder / f"serving-{name}.jsonl").exists()]
    found = [figures.read(path) for path in paths]
    lines = [line for _, lines in found for line in lines]
    pictures = _draw(folder, lines)
    machines = sorted({_told(first["machine"]) for first, _ in found})
    trial = any(first["asked"]["quick"] for first, _ in found)
    text = [
        "# Results of `python -m benchmarks.serving`",
        "",
        *(["**A trial (`--quick`): the figures mean nothing.**", ""] if trial else []),
        *machines,
        "",
        "| figure | value | baseline | ratio | target | met |",
        "| --- | --- | --- | --- | --- | --- |",
        *map(_row, lines),
        "",
        *(f"![{picture.stem}]({picture.name})" for picture in pictures),
        "",
        *(f"More: [{path.stem}]({path.name})." for path in sorted(folder.glob("*.md")) if path.name != "README.md"),
    ]
    (folder / "README.md").write_text("\n".join(text).rstrip() + "\n")


def _draw(folder: Path, lines: Sequence[Line]) -> list[Path]:
    if find_spec("matplotlib") is None:
        print("no pictures: they need the `bench` extra")
        return []
    # Only here, as it is an extra.
    from benchmarks import plots  # noqa: PLC0415

    pictures = []
    for figure, drawing in _DRAWN.items():
        points = [line for line in lines if line["figure"] == figure]
        if points:
            pictures.append(folder / f"serving-{figure.replace('_', '-')}.png")
            getattr(plots, drawing)(points, pictures[-1])
    return pictures


def _told(machine: Machine) -> str:
    flags = ", ".join(machine["flags"]) or "no bf16"
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cpu = f"{machine['cpu']}, {machine['cores']} cores ({flags}), {machine['ram_gb']} GB"
    return f"{cpu}{gpu}; Python {machine['python']}, {versions}."


def _row(line: Line) -> str:
    met = {True: "yes", False: "no", None: ""}[line["met"]]
    name = line["figure"].replace("_", " ")
    if "adapters" in line:
        name += f", {line['adapters']} adapters"
    if "arrivals_per_second" in line:
        name += f", {line['arrivals_per_second']:g} arrivals/s"
    baseline = line["baseline_of"] if line["baseline"] is None else f"{line['baseline']:g} ({line['baseline_of']})"
    ratio = "" if line["ratio"] is None else f"{line['ratio']:g}"
    return f"| {name} | {line['value']:g} {line['unit']} | {baseline} | {ratio} | {line['target']} | {met} |"

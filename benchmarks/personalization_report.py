"""Renders the results of `benchmarks.personalization` as a table and a picture."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from benchmarks import figures
from benchmarks.figures import Head

# The rivals shown in the picture.
_PLOTTED = ("classmate", "stranger", "policy_prompt")
_COLUMNS = ("base", "main_brain", "policy_prompt", "stranger", "classmate")


def write(results: Path) -> None:
    """Writes `personalization.md` and a picture next to the results file."""
    head, lines = figures.read_results(results)
    facts = [cast("Mapping[str, Any]", line) for line in lines]
    students = [line for line in facts if line["figure"] == "heldout_loss_own"]
    picture = _draw(results, students)
    text = [
        "# Results of `python -m benchmarks.personalization`",
        "",
        _describe_run(head),
        "",
        "| student | base | Main Brain | policy in prompt | stranger's | classmate's | own | own ahead |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_row, students),
        "",
        *(_sentence(line) for line in facts if line["figure"].startswith(("own_ahead", "students_whose_own_beats"))),
        "",
        "Policy shown on held-out questions, and replies that are no use:",
        "",
        *(_share(line) for line in facts if line["figure"].startswith(("policy_shown", "own_replies"))),
        *(["", f"![{picture.stem}]({picture.name})"] if picture else []),
    ]
    results.with_suffix(".md").write_text("\n".join(text) + "\n")


def _describe_run(head: Head) -> str:
    conditions = head["conditions"]
    return (
        f"{head['machine']['cpu']}, {conditions['dtype']}, {conditions['base_model']}; "
        f"students of {conditions['folder']}, {_up_to(conditions['responses'])} answers each, "
        f"at most {conditions['epochs']} epochs. Nats per token on held-out replies."
    )


def _up_to(number: object) -> str:
    return "all" if number is None else f"up to {number}"


def _share(line: Mapping[str, Any]) -> str:
    name, target = str(line["figure"]).replace("_", " "), f" (target {line['target']})" if line["target"] else ""
    tokens = line.get("tokens_in_the_prompt")
    return f"- {name}: {line['value']:.1%}{target}" + (f", for {tokens:g} tokens in each prompt" if tokens else "")


def _row(line: Mapping[str, Any]) -> str:
    losses = [f"{line[name]:.3f}" if name in line else "" for name in _COLUMNS]
    return f"| {line['student']} | {' | '.join(losses)} | {line['value']:.3f} | {_ahead(line, 'classmate')} |"


def _ahead(line: Mapping[str, Any], rival: str) -> str:
    return f"{line[f'{rival}_ahead']:+.3f} ({line[f'{rival}_low']:+.3f} to {line[f'{rival}_high']:+.3f})"


def _sentence(line: Mapping[str, Any]) -> str:
    name = str(line["figure"]).replace("_", " ")
    if "low" in line:
        return f"- {name}: {line['value']:+.3f} nats per token ({line['low']:+.3f} to {line['high']:+.3f})"
    clearly = f"clearly {line['clearly']}, clearly not {line['clearly_not']}"
    return f"- {name}: {line['value']:g} of {line['baseline']:g} ({clearly})"


def _draw(results: Path, students: Sequence[Mapping[str, Any]]) -> Path | None:
    if find_spec("matplotlib") is None:
        print("no picture: install the `bench` extra to draw it")
        return None
    # Imported here, because matplotlib is an optional dependency.
    from benchmarks import plots  # noqa: PLC0415

    picture = results.with_suffix(".png")
    plots.draw_advantages(students, picture, rivals=_PLOTTED)
    return picture

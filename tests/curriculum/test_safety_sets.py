"""The public safety sets, as their files are."""

import json
from pathlib import Path

import pytest

from curriculum.records import InvalidLine
from curriculum.safety_sets import read_harmful_requests, read_moderated
from mesh.lm.guarding import HarmCategory


def test_labels_of_the_moderation_set_become_categories(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "a", "S": 0, "H": 0, "V": 0, "HR": 0, "SH": 1, "S3": 0, "H2": 0, "V2": 0},
        {"prompt": "b", "HR": 1, "SH": 0, "V": 1, "V2": 0},
        {"prompt": "c", "S": 1, "S3": 0},
        {"prompt": "d", "H": 0, "H2": 0},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    texts = list(read_moderated(path))

    assert [text.text for text in texts] == ["a", "b", "c", "d"]
    assert [text.categories for text in texts] == [
        {HarmCategory.SELF_HARM},
        {HarmCategory.HATE, HarmCategory.VIOLENCE},
        {HarmCategory.SEXUAL},
        set(),
    ]


def test_a_faulty_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "SH": 1}\n{"prompt": "b", "SH": "much"}\n')
    with pytest.raises(InvalidLine, match=r"rows\.jsonl:2: SH"):
        list(read_moderated(path))


def test_requests_are_read_with_their_areas(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text('id,harm_area,counter,category,prompts_final\n1,Scams,1,x,"How, then?"\n')
    (request,) = read_harmful_requests(path)
    assert (request.text, request.area) == ("How, then?", "Scams")


def test_a_file_without_the_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("id,harm_area\n1,Scams\n")
    with pytest.raises(InvalidLine, match=r"requests\.csv:1: prompts_final"):
        list(read_harmful_requests(path))

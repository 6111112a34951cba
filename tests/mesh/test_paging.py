"""Pages: their sizes, and tokens that belong to one list."""

import pytest

from mesh.errors import InvalidField
from mesh.paging import PAGE_SIZE_DEFAULT, PAGE_SIZE_HIGH, clamp_page_size, number_in, position_in, token_after


def test_a_size_is_lowered_to_the_limit_and_left_to_us_if_it_is_0() -> None:
    assert [clamp_page_size(size) for size in (0, 1, PAGE_SIZE_HIGH, PAGE_SIZE_HIGH + 1)] == [
        PAGE_SIZE_DEFAULT,
        1,
        PAGE_SIZE_HIGH,
        PAGE_SIZE_HIGH,
    ]


def test_a_token_tells_its_position_to_its_own_list() -> None:
    assert number_in(token_after(17, "clones"), "clones") == 17
    assert position_in(token_after("ada", "students"), "students", is_position=str.isalpha) == "ada"


@pytest.mark.parametrize(
    "token",
    [
        "junk",
        "",
        "é",
        token_after(17, "models"),
        token_after("x", "clones"),
        token_after("²", "clones"),
        token_after("", "clones"),
        token_after("1" * 5_000, "clones"),
        token_after(17, "clones")[:-2],
    ],
)
def test_what_is_no_token_of_the_list_is_refused(token: str) -> None:
    with pytest.raises(InvalidField, match="page_token: must be the next_page_token of a page of the same list"):
        number_in(token, "clones")

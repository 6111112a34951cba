"""Lists of clones on a real Valkey, page by page."""

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cloning_server.clone import CloneState
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.listing import CloneListing
from cloning_server.clones.records import NO_LEASE
from cloning_server.clones.registry import Registry
from mesh.errors import (
    InvalidField,
)
from mesh.valkey.connection import open_redis
from tests.cloning_server.clones.conftest import next_change
from tests.cloning_server.conftest import STUDENT, baseline


async def test_pages_hold_every_clone_once_newest_first_while_more_are_accepted(registry: Registry) -> None:
    accepted = [(await registry.intake.start(f"student-{n}", baseline())).clone_id for n in range(7)]
    listed, token = [], ""
    for late in range(4):
        page = await registry.listing.list_clones(size=2, token=token)
        listed += [clone.clone_id for clone in page.clones]
        token = page.next_token
        await registry.intake.start(f"student-late-{late}", baseline())
    assert listed == accepted[::-1]
    assert token == ""


async def test_a_list_of_one_student_holds_only_theirs(registry: Registry) -> None:
    mine = []
    for _ in range(3):
        clone = await registry.intake.start(STUDENT, baseline())
        await registry.changes.write(next_change(clone, CloneState.FAILED), token=NO_LEASE)
        mine.append(clone.clone_id)
    await registry.intake.start("another", baseline())
    page = await registry.listing.list_clones(student_id=STUDENT, size=3)
    assert [clone.clone_id for clone in page.clones] == mine[::-1]
    assert page.next_token == "", "a last page that is full has no page after it"


async def test_the_token_of_another_list_is_refused(registry: Registry) -> None:
    for n in range(3):
        await registry.intake.start(f"student-{n}", baseline())
    token = (await registry.listing.list_clones(size=1)).next_token
    with pytest.raises(InvalidField) as caught:
        await registry.listing.list_clones(student_id="student-0", token=token)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


@given(token=st.text(min_size=1, max_size=40))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_junk_is_taken_for_a_page_token(token: str) -> None:
    listing = CloneListing(CloneStore(open_redis("redis://127.0.0.1:1/0")))
    with pytest.raises(InvalidField):
        # Refused before the store is asked, which is not there: so the coroutine never waits for anything.
        listing.list_clones(token=token).send(None)

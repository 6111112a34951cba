"""A district's night: a long queue, few steps a clone, many who watch."""

import asyncio

import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb

from cloning_server.clone import CloneState
from testing.scripted import trainer as scripted_trainer
from tests.cloning_server.conftest import Cloning, order, watch_all

CLONES, WATCHERS, WATCHED = 200, 50, 5


@pytest.mark.slow
async def test_two_hundred_clones_run_in_order_and_fifty_watchers_see_the_same(
    cloning: Cloning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted_trainer, "STEPS", 1)
    cloning.set(clone_queue_limit=CLONES)
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        accepted = [(await stub.StartClone(order(f"student-{n}", responses=2))).clone_id for n in range(CLONES)]
        last = await stub.GetClone(pb.GetCloneRequest(clone_id=accepted[-1]))
        assert last.queue_position == CLONES - 1
        watching = [asyncio.create_task(watch_all(stub, accepted[-1 - n % WATCHED])) for n in range(WATCHERS)]
        gate.open()
        feeds = await asyncio.gather(*watching)
        for n, changes in enumerate(feeds):
            assert changes == feeds[n % WATCHED]
            assert [change.sequence for change in changes] == list(range(1, len(changes) + 1))
        health = await stub.GetHealth(pb.GetHealthRequest())
        assert (health.queued_clones, health.running_clones) == (0, 0)
        listed: list[tuple[str, str]] = []
        token = ""
        while not listed or token:
            page = await stub.ListClones(pb.ListClonesRequest(page_size=100, page_token=token))
            listed += [(clone.clone_id, clone.status) for clone in page.clones]
            token = page.next_page_token
    assert listed == [(clone_id, "completed") for clone_id in reversed(accepted)]
    assert [plan.clone_id for plan in cloning.trainer.plans] == accepted

"""A student's models, and the end of all that is held of a student, through a real server."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1 import student_model_service_pb2 as models_pb
from aivo.cloning.v1 import student_service_pb2 as student_pb

from cloning_server.clone import CloneState, Consent, Terms
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.registry import Registry
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore, CloneVoided
from mesh.alerts.alert import NewFinding
from mesh.alerts.alert_store import AlertStore
from mesh.errors import AdapterIncompatible, CloneNotFound, ConsentRequired, InvalidField, ModelVersionNotFound
from mesh.rpc.errors import error_from, error_of
from testing.adapters import write_bare_version
from testing.lessons import plan_of
from testing.scripted.trainer import recipe_for, weights_for
from tests.cloning_server.conftest import (
    SEALING,
    STUDENT,
    Cloning,
    CloningStub,
    baseline,
    order,
    raised,
    watch_all,
)
from tests.cloning_server.students.calls import clone, delete, models_of


async def test_an_earlier_version_answers_again_and_then_the_later_one(stub: CloningStub) -> None:
    for _ in range(2):
        await clone(stub)
    for version, before in ((1, 2), (1, 1), (2, 1)):
        response = await stub.ActivateStudentModel(
            models_pb.ActivateStudentModelRequest(student_id=STUDENT, version=version)
        )
        models = await models_of(stub)
        assert (response.student_id, response.active_version, response.previous_version) == (STUDENT, version, before)
        assert models.active_version == version
        assert response.sha256 == next(model.sha256 for model in models.models if model.active)


async def test_activations_at_once_each_tell_the_version_that_they_replaced(stub: CloningStub) -> None:
    for _ in range(3):
        await clone(stub)

    activations = await asyncio.gather(
        *(
            stub.ActivateStudentModel(models_pb.ActivateStudentModelRequest(student_id=STUDENT, version=version))
            for version in (1, 2, 1)
        )
    )

    # Each version is left as often as it is entered, counting where it began and where it ended.
    entered = [3, *(activation.active_version for activation in activations)]
    versions = [*(activation.previous_version for activation in activations), (await models_of(stub)).active_version]
    assert sorted(entered) == sorted(versions)


async def test_a_version_that_is_not_there_is_neither_activated_nor_pinned(stub: CloningStub) -> None:
    for call in (
        lambda: stub.ActivateStudentModel(models_pb.ActivateStudentModelRequest(student_id=STUDENT, version=7)),
        lambda: stub.PinStudentModel(models_pb.PinStudentModelRequest(student_id=STUDENT, version=7)),
        lambda: stub.UnpinStudentModel(models_pb.UnpinStudentModelRequest(student_id=STUDENT, version=7)),
    ):
        with raised() as failure:
            await call()
        assert isinstance(failure.error, ModelVersionNotFound)
        assert failure.error.facts == {"student_id": STUDENT, "version": "7"}
    with raised() as malformed:
        await stub.ActivateStudentModel(models_pb.ActivateStudentModelRequest(student_id="../x"))
    assert isinstance(malformed.error, InvalidField)
    assert [violation.field for violation in malformed.error.violations] == ["student_id", "version"]


async def test_the_last_versions_stay_and_the_pinned_ones_and_the_active_one(cloning: Cloning) -> None:
    cloning.set(keep_versions=2)
    async with cloning.serve() as stub:
        await clone(stub)
        pinned = await stub.PinStudentModel(models_pb.PinStudentModelRequest(student_id=STUDENT, version=1))
        assert pinned == models_pb.PinStudentModelResponse(student_id=STUDENT, version=1)
        for _ in range(3):
            await clone(stub)
        models = [(model.version, model.pinned, model.active) for model in (await models_of(stub)).models]
        assert models == [(4, False, True), (3, False, False), (1, True, False)]
        unpinned = await stub.UnpinStudentModel(models_pb.UnpinStudentModelRequest(student_id=STUDENT, version=1))
        assert unpinned == models_pb.UnpinStudentModelResponse(student_id=STUDENT, version=1)
        await clone(stub)
        assert [model.version for model in (await models_of(stub)).models] == [5, 4]


async def test_models_tell_what_they_were_made_of(stub: CloningStub) -> None:
    await clone(stub)
    (model,) = (await models_of(stub)).models
    assert (model.data_digest, model.seed, model.metrics.seconds) == ("1" * 64, 0, 1.0)


async def test_a_version_of_before_is_listed_cloned_upon_activated_again_and_deleted(
    cloning: Cloning, stub: CloningStub, blobs: S3Blobs
) -> None:
    plan = plan_of(baseline())
    weights, recipe = weights_for(plan), recipe_for(plan)
    bare = await write_bare_version(blobs, cloning.adapters.ref(STUDENT, 1), weights, recipe=recipe)
    await cloning.adapters.activate(STUDENT, 1)
    assert [(model.version, model.sha256, model.active) for model in (await models_of(stub)).models] == [
        (1, bare.sha256, True)
    ]

    await clone(stub, base_version=1)
    (trained,) = cloning.trainer.plans
    assert trained.previous is not None
    assert (trained.previous.weights, trained.previous.warm) == (weights, True)
    assert [model.version for model in (await models_of(stub)).models] == [2, 1]
    again = await stub.ActivateStudentModel(models_pb.ActivateStudentModelRequest(student_id=STUDENT, version=1))
    assert (again.previous_version, again.sha256) == (2, bare.sha256)

    receipt = await delete(stub)
    # Two objects of the first version, three of the second, and the pointer.
    assert (receipt.models.versions, receipt.models.objects) == (2, 6)
    assert (await models_of(stub)).models == []
    assert await blobs.keys(f"{bare.ref.tenant}/{STUDENT}/") == []


async def test_a_clone_is_measured_against_the_version_that_answers(cloning: Cloning, stub: CloningStub) -> None:
    await clone(stub)
    await clone(stub)
    first, second = cloning.trainer.plans
    assert first.previous is None
    assert second.previous is not None
    assert (second.previous.weights, second.previous.warm) == (weights_for(first), False)
    assert second.previous.scaling == recipe_for(first).scaling


async def test_an_earlier_version_that_the_trainer_cannot_compare_with_is_left_out_and_ends_no_clone(
    cloning: Cloning, stub: CloningStub
) -> None:
    await clone(stub)
    cloning.trainer.faults.append(AdapterIncompatible("its rank is another", version=1))
    await clone(stub)
    _, compared, alone = cloning.trainer.plans
    assert (compared.previous is None, alone.previous is None) == (False, True)


async def test_a_clone_goes_on_from_the_version_that_was_asked_for(cloning: Cloning, stub: CloningStub) -> None:
    for base_version in (0, 0, 1):
        last = await clone(stub, base_version=base_version)
    first, _, third = cloning.trainer.plans
    assert third.previous is not None
    assert (third.previous.weights, third.previous.warm) == (weights_for(first), True)
    assert (await stub.GetClone(pb.GetCloneRequest(clone_id=last))).base_version == 1
    missing = order()
    missing.base_version = 9
    with raised() as failure:
        await stub.StartClone(missing)
    assert isinstance(failure.error, ModelVersionNotFound)


async def test_a_consent_is_kept_with_the_clone_and_wanted_where_the_server_wants_it(cloning: Cloning) -> None:
    cloning.set(require_consent=True)
    async with cloning.serve() as stub:
        with raised() as failure:
            await stub.StartClone(order())
        assert isinstance(failure.error, ConsentRequired)
        request = order()
        request.consent.basis = "parental_consent"
        request.consent.grant_time.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
        clone_id = (await stub.StartClone(request)).clone_id
        await watch_all(stub, clone_id)
        assert (await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))).consent == request.consent


async def test_a_consent_that_expires_while_the_clone_waits_ends_it_untrained(
    cloning: Cloning, clones: CloneStore
) -> None:
    now = datetime.now(UTC)
    consent = Consent(basis="parental", granted_time=now, expires_time=now + timedelta(seconds=0.3))
    accepted = await Registry.of(clones, sealing=SEALING).intake.start(
        STUDENT, baseline(), terms=Terms(consent=consent)
    )
    await asyncio.sleep((now + timedelta(seconds=0.3) - datetime.now(UTC)).total_seconds())
    async with cloning.serve() as stub:
        last = (await watch_all(stub, accepted.clone_id))[-1]
    assert isinstance(error_from(last.error), ConsentRequired)
    assert cloning.trainer.plans == []


async def test_a_repeated_request_gets_its_clone_also_after_its_consent_has_expired(stub: CloningStub) -> None:
    request = order(request_id="enrol")
    expires = datetime.now(UTC) + timedelta(seconds=1)
    request.consent.basis = "parental_consent"
    request.consent.grant_time.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
    request.consent.expire_time.FromDatetime(expires)
    first = await stub.StartClone(request)
    await asyncio.sleep((expires - datetime.now(UTC)).total_seconds())
    assert await stub.StartClone(request) == first
    with raised() as failure:
        request.request_id = "another"
        await stub.StartClone(request)
    assert isinstance(failure.error, ConsentRequired)


async def test_a_repeated_request_gets_its_clone_also_after_its_base_version_is_gone(
    cloning: Cloning, stub: CloningStub, adapters: AdapterStore
) -> None:
    await clone(stub)
    request = order(request_id="again")
    request.base_version = 1
    first = await stub.StartClone(request)
    await watch_all(stub, first.clone_id)
    await adapters.delete_student(STUDENT)
    assert await stub.StartClone(request) == first


async def test_a_deleted_student_leaves_nothing_but_the_receipt(cloning: Cloning, stub: CloningStub) -> None:
    clone_ids = [await clone(stub, request_id=f"enrol-{n}") for n in range(2)]
    other_clone = await clone(stub, "another")
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    gate.reached.clear()
    runs = (await stub.StartClone(order(request_id="enrol-2"))).clone_id
    await gate.reached.wait()
    behind = order()
    behind.queue_behind = True
    waits = (await stub.StartClone(behind)).clone_id
    alerts = AlertStore(cloning.redis, tenant=cloning.settings.tenant)
    alert_id = await alerts.record(
        NewFinding(
            finding_id="1", student_id=STUDENT, probabilities={"self_harm": 1.0}, action=3, text="PROMPT",
            guard="rules", request_id="call-1", words="private words",
        )
    )  # fmt: skip

    receipt = await delete(stub)
    assert receipt.alerts == 1
    assert (receipt.student_id, receipt.delete_time.seconds > 0) == (STUDENT, True)
    assert receipt.clones == student_pb.ErasedClones(clones=4, cancelled=2, request_ids=3)
    assert receipt.models.versions == 2
    assert receipt.models.objects >= 2 * 2 + 1, "weights and manifests of both, and the pointer"
    assert receipt.models.bytes > 0
    assert (receipt.brain.reached, receipt.brain.adapters) == (True, 2)
    assert (receipt.brain.HasField("listening"), receipt.brain.listening) == (True, 0), "the scripted brain is deaf"
    assert receipt.brain.forget_time.seconds >= receipt.delete_time.seconds
    assert cloning.brain.evicted_students == [STUDENT]
    residues = {student_pb.ResiduePlace.Name(residue.place)[14:]: residue for residue in receipt.residues}
    assert set(residues) == {
        "BRAINS", "TRAINERS", "CLONE_STORE_FILE", "ADAPTER_STORE_DISKS", "REPLY_CACHE", "LOGS_AND_BACKUPS"
    }  # fmt: skip
    assert residues["BRAINS"].until == receipt.brain.forget_time
    assert residues["CLONE_STORE_FILE"].until.seconds - receipt.delete_time.seconds == 120
    assert (
        residues["TRAINERS"].until.seconds - receipt.delete_time.seconds == cloning.settings.train_timeout_seconds / 10
    )
    assert residues["REPLY_CACHE"].until.seconds - receipt.delete_time.seconds == 300 * 24 * 3600
    assert not any(residues[place].HasField("until") for place in ("ADAPTER_STORE_DISKS", "LOGS_AND_BACKUPS"))

    await cloning.trainer.cut_off.wait()
    for clone_id in (*clone_ids, runs, waits):
        with raised() as failure:
            await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))
        assert isinstance(failure.error, CloneNotFound)
    assert await models_of(stub) == models_pb.ListStudentModelsResponse(student_id=STUDENT)
    assert [listed_clone.clone_id for listed_clone in (await stub.ListClones(pb.ListClonesRequest())).clones] == [
        other_clone
    ]
    stored = await cloning.stored()
    traces = (STUDENT, "enrol-", runs, waits, alert_id, "private words", *clone_ids)
    assert [key for key, value in stored.items() for trace in traces if trace in key or trace.encode() in value] == []
    assert (await models_of(stub, "another")).active_version == 1, "of others, everything stays"

    again = await delete(stub)
    assert {residue.place for residue in again.residues} == {residue.place for residue in receipt.residues}
    assert (again.clones, again.models) == (student_pb.ErasedClones(), student_pb.ErasedModels())
    # Whoever was paused in the middle of it all and wakes up now.
    plan = next(plan for plan in cloning.trainer.plans if plan.clone_id == runs)
    with pytest.raises(CloneVoided):
        await cloning.adapters.stage(STUDENT, weights_for(plan), recipe=recipe_for(plan))
    gate.open()
    assert (await stub.StartClone(order(request_id="enrol-0"))).clone_id not in clone_ids, (
        "and the student may come again"
    )


async def test_a_deletion_does_not_read_what_the_whole_tenant_has_published(
    stub: CloningStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await clone(stub, "other")
    await clone(stub)
    prefixes: list[str] = []
    recorded: dict[str, Callable[[S3Blobs, str], object]] = {}
    for method in ("entries", "forget", "erase"):

        def list_and_record(blobs: S3Blobs, prefix: str, *, method: str = method) -> object:
            prefixes.append(prefix)
            return recorded[method](blobs, prefix)

        recorded[method] = getattr(S3Blobs, method)
        monkeypatch.setattr(S3Blobs, method, list_and_record)
    await delete(stub)
    commits = [prefix.partition("_commits/")[2] for prefix in prefixes if "_commits/" in prefix]
    assert commits, "the student's own commit is made void"
    assert "" not in commits


async def test_a_student_whose_commits_can_not_be_read_is_deleted_all_the_same(
    cloning: Cloning, stub: CloningStub, blobs: S3Blobs
) -> None:
    clone_id = await clone(stub)
    tenant = cloning.settings.tenant
    for key in (f"{tenant}/_commits/{clone_id}.json", f"{tenant}/{STUDENT}/v1/manifest.json"):
        await blobs.erase(key)
        await blobs.create(key, b" " * 200_000)

    assert (await delete(stub)).models.versions == 1

    assert await blobs.keys(f"{tenant}/{STUDENT}/") == []


async def test_a_request_that_is_repeated_while_its_student_is_deleted_makes_a_new_clone(
    stub: CloningStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier_id = await clone(stub, request_id="enrol")
    read_changes = CloneStore.read_changes

    async def delete_and_read(
        store: CloneStore, clone_id: str, *, after: int, limit: int | None = None
    ) -> dict[int, str]:
        monkeypatch.undo()
        await delete(stub)
        return await read_changes(store, clone_id, after=after, limit=limit)

    monkeypatch.setattr(CloneStore, "read_changes", delete_and_read)
    started = await stub.StartClone(order(request_id="enrol"))
    assert started.clone_id != earlier_id
    assert (await watch_all(stub, started.clone_id))[-1].status == "completed"


async def test_a_request_whose_clone_the_store_lost_is_told_so(cloning: Cloning, stub: CloningStub) -> None:
    clone_id = await clone(stub, request_id="enrol")
    await cloning.redis.delete(f"{{aivo:{cloning.settings.tenant}}}:feed:{clone_id}")
    with raised() as failure:
        await stub.StartClone(order(request_id="enrol"), timeout=20)
    assert isinstance(failure.error, CloneNotFound)


async def test_the_end_of_a_watch_says_whether_the_model_answers_now(cloning: Cloning) -> None:
    cloning.set(deploy_timeout_seconds=0.3)
    async with cloning.serve() as stub:
        first = await clone(stub)
        assert (await watch_all(stub, first))[-1].model.active
        await clone(stub)
        assert not (await watch_all(stub, first))[-1].model.active, "the second version answers"

        await cloning.brain.stop()
        failed = (await stub.StartClone(order())).clone_id
        assert not (await watch_all(stub, failed))[-1].model.active
        await cloning.brain.start()
        await stub.ActivateStudentModel(models_pb.ActivateStudentModelRequest(student_id=STUDENT, version=3))
        last = (await watch_all(stub, failed))[-1]
        assert (last.status, last.model.version, last.model.active) == ("failed", 3, True)


async def test_watchers_of_a_deleted_clone_are_told_its_end(cloning: Cloning, stub: CloningStub) -> None:
    cloning.trainer.gates[CloneState.FINE_TUNING].shut()
    clone_id = (await stub.StartClone(order())).clone_id
    await cloning.trainer.gates[CloneState.FINE_TUNING].reached.wait()
    watching = asyncio.create_task(watch_all(stub, clone_id))
    await delete(stub)
    (result,) = await asyncio.gather(watching, return_exceptions=True)
    if isinstance(result, grpc.aio.AioRpcError):
        # It looked after all was gone.
        assert isinstance(error_of(result), CloneNotFound)
    else:
        assert isinstance(result, list)
        assert result[-1].status == "cancelled"


async def test_a_brain_that_is_away_is_told_in_the_receipt(cloning: Cloning, stub: CloningStub) -> None:
    await clone(stub)
    await cloning.brain.stop()
    receipt = await delete(stub)
    assert (receipt.models.versions, receipt.brain.reached) == (1, False)
    await cloning.brain.start()
    assert (await delete(stub)).brain.reached

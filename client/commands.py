"""What the commands of `aivo` do: call, and print what comes back.

Each returns the exit status, and raises the `AivoError` of the call if it fails. Knows nothing of the command line.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from aivo.brain.v1.brain_service_pb2 import AssessRequest, GenerateStreamRequest
from aivo.cloning.v1.cloning_service_pb2 import ListClonesRequest, StartCloneRequest, WatchCloneResponse
from aivo.cloning.v1.student_model_service_pb2 import ListStudentModelsRequest
from rich.console import Console

from client.brain import BrainClient
from client.cloning import CloningClient
from client.display import (
    ChangeT,
    Health,
    UnreachableHealth,
    author_of,
    clones_table,
    health_line,
    models_table,
    outdated_table,
    policy_lines,
    print_healths,
    print_json,
    residue_line,
    show_progress,
)
from mesh.errors import AivoError
from mesh.rpc.errors import error_from

DONE, FAILED, WRONG, NOT_NOW = 0, 1, 2, 3
# What a health check waits for a server that may not be there.
_HEALTH_SECONDS = 5

_out = Console(highlight=False, markup=False, soft_wrap=True)


async def generate(address: str, request: GenerateStreamRequest, *, as_json: bool) -> int:
    """Streams a reply to the terminal."""
    async with BrainClient(address) as brain:
        async for message in brain.stream(request):
            if as_json:
                print_json(_out, message, indent=None)
            elif message.HasField("finished"):
                _out.print(f"\n— {author_of(message.finished)}", style="dim")
            else:
                _out.print(message.text, end="")
                _out.file.flush()
    return DONE


async def assess(address: str, request: AssessRequest, *, as_json: bool) -> int:
    """Prints a verdict."""
    async with BrainClient(address) as brain:
        verdict = await brain.assess(request)
    if as_json:
        print_json(_out, verdict)
        return DONE
    _out.print(f"{verdict.correctness:.0f} of 100, {verdict.understanding_level}", style="bold")
    _out.print(verdict.feedback)
    for title, lines in (
        ("Strengths", verdict.strengths),
        ("To improve", verdict.areas_for_improvement),
        ("Next", [verdict.next_steps] if verdict.next_steps else []),
    ):
        for line in lines:
            _out.print(f"{title}: {line}")
    _out.print(f"— {author_of(verdict)}; graded by {verdict.grader[:17]}", style="dim")
    return DONE


async def start_clone(address: str, request: StartCloneRequest, *, watch: bool, as_json: bool) -> int:
    """Starts a clone; with `watch`, stays until it has ended."""
    async with CloningClient(address) as cloning:
        started = await cloning.start(request)
        if as_json:
            print_json(_out, started, indent=None)
        else:
            _out.print(f"{started.clone_id}: about {started.estimated_time_seconds} s")
        return await _follow(cloning.watch(started.clone_id), as_json=as_json) if watch else DONE


async def watch_clone(address: str, clone_id: str, *, as_json: bool) -> int:
    """Follows a clone until it has ended."""
    async with CloningClient(address) as cloning:
        return await _follow(cloning.watch(clone_id), as_json=as_json)


async def watch_clones(address: str, clone_ids: Sequence[str], student_ids: Sequence[str], *, as_json: bool) -> int:
    """Follows clones until all have ended; `FAILED` unless all have completed."""
    async with CloningClient(address) as cloning:
        changes = cloning.watch_many(clone_ids=clone_ids, student_ids=student_ids)
        last_changes = await _show(changes, as_json=as_json)
    if not as_json:
        for change in last_changes:
            _out.print(f"{change.student_id}, {change.clone_id}: {change.error.message or change.status}")
        if not last_changes:
            _out.print("These students have no clone.")
    return DONE if last_changes and all(change.status == "completed" for change in last_changes) else FAILED


async def show_clone(address: str, clone_id: str, *, as_json: bool) -> int:
    """Prints where a clone is."""
    async with CloningClient(address) as cloning:
        clone = await cloning.fetch(clone_id)
    if as_json:
        print_json(_out, clone)
    else:
        _out.print(f"{clone.clone_id}: {clone.status}, {clone.progress} %. {clone.message}")
    return DONE


async def list_clones(address: str, request: ListClonesRequest, *, as_json: bool) -> int:
    """Prints a page of clones."""
    async with CloningClient(address) as cloning:
        page = await cloning.list_clones(request)
    if as_json:
        print_json(_out, page)
        return DONE
    _out.print(clones_table(page))
    _print_next_page(page.next_page_token)
    return DONE


async def list_models(address: str, request: ListStudentModelsRequest, *, as_json: bool) -> int:
    """Prints a page of the versions of a student's model."""
    async with CloningClient(address) as cloning:
        page = await cloning.list_models(request)
    if as_json:
        print_json(_out, page)
        return DONE
    _out.print(models_table(page))
    if policy := policy_lines(page, is_first_page=not request.page_token):
        _out.print(policy)
    _print_next_page(page.next_page_token)
    return DONE


async def list_outdated(address: str, *, as_json: bool) -> int:
    """Prints all students whose active model was made on another Main Brain."""
    async with CloningClient(address) as cloning:
        outdated = await cloning.list_outdated()
    if as_json:
        print_json(_out, outdated)
        return DONE
    _out.print(outdated_table(outdated))
    return DONE


async def cancel_clone(address: str, clone_id: str, *, as_json: bool) -> int:
    """Cancels a clone."""
    async with CloningClient(address) as cloning:
        answer = await cloning.cancel(clone_id)
    if as_json:
        print_json(_out, answer)
    else:
        _out.print(f"{answer.clone_id}: {answer.status}")
    return DONE


async def activate_model(address: str, student_id: str, version: int, *, as_json: bool) -> int:
    """Makes a version the active one."""
    async with CloningClient(address) as cloning:
        answer = await cloning.activate(student_id, version)
    if as_json:
        print_json(_out, answer)
    else:
        before = f"version {answer.previous_version}" if answer.HasField("previous_version") else "none"
        _out.print(f"{answer.student_id}: version {answer.active_version} is active (before: {before})")
    return DONE


async def pin_model(address: str, student_id: str, version: int, *, pinned: bool, as_json: bool) -> int:
    """Pins a version, or unpins it."""
    async with CloningClient(address) as cloning:
        change = cloning.pin if pinned else cloning.unpin
        answer = await change(student_id, version)
    if as_json:
        print_json(_out, answer)
    else:
        _out.print(f"{answer.student_id}: version {answer.version} is {'' if pinned else 'not '}pinned")
    return DONE


async def delete_student(address: str, student_id: str, *, as_json: bool) -> int:
    """Removes everything of a student; `NOT_NOW` if the brain was not reached."""
    async with CloningClient(address) as cloning:
        receipt = await cloning.delete_student(student_id)
    if as_json:
        print_json(_out, receipt)
    else:
        clones, models, brain = receipt.clones, receipt.models, receipt.brain
        _out.print(f"{clones.clones} clones ({clones.cancelled} cancelled), {clones.request_ids} request ids")
        _out.print(f"{models.versions} versions: {models.objects} objects, {models.bytes:,.0f} bytes")
        if receipt.alerts:
            _out.print(f"{receipt.alerts} safety alerts")
        _out.print(
            f"{brain.adapters} adapters in the brain"
            if brain.reached
            else "the brain was not reached; run the command again"
        )
        for residue in receipt.residues:
            _out.print(residue_line(residue))
    return DONE if receipt.brain.reached else NOT_NOW


async def export_student(address: str, student_id: str) -> int:
    """Prints all that is held of a student, as JSON."""
    async with CloningClient(address) as cloning:
        print_json(_out, await cloning.export_student(student_id))
    return DONE


async def show_health(brain_address: str, cloning_address: str, *, as_json: bool) -> int:
    """Prints both servers' health; `NOT_NOW` unless both can answer."""
    async with BrainClient(brain_address) as brain, CloningClient(cloning_address) as cloning:
        answers = await asyncio.gather(
            asyncio.wait_for(brain.health(), _HEALTH_SECONDS),
            asyncio.wait_for(cloning.health(), _HEALTH_SECONDS),
            return_exceptions=True,
        )
    healths = dict(zip(("brain", "cloning"), map(_health_of, answers), strict=True))
    if as_json:
        print_healths(_out, healths)
    else:
        for name, health in healths.items():
            _out.print(f"{name}: {health_line(health)}")
    return DONE if all(health.status in {"healthy", "degraded"} for health in healths.values()) else NOT_NOW


def _health_of(answer: Health | BaseException) -> Health:
    match answer:
        case AivoError() | TimeoutError():
            return UnreachableHealth(reason=str(answer) or "it took too long")
        case BaseException():
            raise answer
        case _:
            return answer


def _print_next_page(token: str) -> None:
    if token:
        _out.print(f"next page: --page-token {token}")


async def _follow(changes: AsyncIterator[WatchCloneResponse], *, as_json: bool) -> int:
    last_changes = await _show(changes, as_json=as_json)
    for change in last_changes:
        if change.HasField("error"):
            raise error_from(change.error)
    return DONE if [change.status for change in last_changes] == ["completed"] else FAILED


async def _show(changes: AsyncIterator[ChangeT], *, as_json: bool) -> list[ChangeT]:
    """Prints changes until they end; returns the last of each clone."""
    if not as_json:
        return await show_progress(changes, _out)
    last_changes: dict[str, ChangeT] = {}
    async for change in changes:
        print_json(_out, change, indent=None)
        last_changes[change.clone_id] = change
    return list(last_changes.values())

"""Between the contract's messages about a student's models and the domain, both ways."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from aivo.cloning.v1 import student_model_pb2
from aivo.cloning.v1 import student_model_service_pb2 as pb
from aivo.cloning.v1 import student_service_pb2 as student_pb
from google.protobuf.timestamp_pb2 import Timestamp

from cloning_server.edge.policy_wire import policy_from
from cloning_server.students.erasure import Receipt
from mesh.adapters.manifest import Examples, Manifest, Metrics
from mesh.adapters.ref import is_tenant_folder
from mesh.adapters.store import Activation, OutdatedPage, VersionPage
from mesh.paging import clamp_page_size, number_in, position_in, token_after

# Students to look at; the documented limits of `ListOutdatedStudentsRequest`.
_OUTDATED_SIZE_DEFAULT = 100
_OUTDATED_SIZE_HIGH = 1000
_OUTDATED_LIST = "outdated students"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    """What ListStudentModels asks for: versions below a number, or from the newest on."""

    student_id: str
    size: int
    below: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutdatedQuery:
    """What ListOutdatedStudents asks for: how many students to look at, and after which of the tenant's folders."""

    size: int
    after: str | None


def page_from(request: pb.ListStudentModelsRequest) -> PageQuery:
    """Converts which page of a student's versions is meant.

    Raises:
        InvalidField: The page token does not belong to this list.
    """
    student_id = request.student_id
    below = number_in(request.page_token, _list_name(student_id)) if request.page_token else None
    return PageQuery(student_id=student_id, size=clamp_page_size(request.page_size), below=below)


def outdated_query_from(request: pb.ListOutdatedStudentsRequest) -> OutdatedQuery:
    """Converts which page of the students with an outdated model is meant.

    Raises:
        InvalidField: The page token does not belong to this list.
    """
    token = request.page_token
    after = position_in(token, _OUTDATED_LIST, is_position=is_tenant_folder) if token else None
    size = min(request.page_size or _OUTDATED_SIZE_DEFAULT, _OUTDATED_SIZE_HIGH)
    return OutdatedQuery(size=size, after=after)


def outdated_from(main_brain: str, page: OutdatedPage) -> pb.ListOutdatedStudentsResponse:
    """Converts a page of the students with an outdated model."""
    return pb.ListOutdatedStudentsResponse(
        main_brain=main_brain,
        students=[
            pb.OutdatedStudent(
                student_id=manifest.ref.student_id,
                version=manifest.ref.version,
                base_digest=manifest.recipe.base_digest,
                base_model=manifest.recipe.base_model,
            )
            for manifest in page.manifests
        ],
        next_page_token="" if page.next_after is None else token_after(page.next_after, _OUTDATED_LIST),
    )


def models_from(
    student_id: str, page: VersionPage, *, active_version: int | None, pinned: Collection[int], main_brain: str
) -> pb.ListStudentModelsResponse:
    """Converts a page of a student's versions; `main_brain` is the digest of the one that runs, or empty."""
    return pb.ListStudentModelsResponse(
        student_id=student_id,
        active_version=active_version,
        models=[
            model_from(
                manifest,
                active_version=active_version,
                pinned=manifest.ref.version in pinned,
                main_brain=main_brain,
            )
            for manifest in page.manifests
        ],
        next_page_token="" if page.next_below is None else token_after(page.next_below, _list_name(student_id)),
    )


def model_from(
    manifest: Manifest, *, active_version: int | None, pinned: bool | None = None, main_brain: str = ""
) -> student_model_pb2.StudentModel:
    """Converts a version; `pinned` is None and `main_brain` empty if they were not looked up."""
    recipe = manifest.recipe
    return student_model_pb2.StudentModel(
        version=manifest.ref.version,
        active=manifest.ref.version == active_version,
        sha256=manifest.sha256,
        bytes=manifest.size_bytes,
        create_time=timestamp_from(manifest.created_time),
        clone_id=recipe.clone_id,
        base_model=recipe.base_model,
        base_digest=recipe.base_digest,
        lora=student_model_pb2.LoraConfig(
            rank=recipe.lora.rank,
            alpha=recipe.lora.alpha,
            target_modules=recipe.lora.target_modules,
            scale=recipe.scale,
        ),
        # The names are the same on both sides; a manifest that gains one the contract lacks fails here.
        examples=_examples_from(recipe.examples),
        metrics=_metrics_from(recipe.metrics),
        pinned=pinned,
        data_digest=recipe.data_digest,
        seed=recipe.seed,
        starting_version=student_model_pb2.StartingVersion(**asdict(recipe.start)) if recipe.start else None,
        outdated=recipe.base_digest != main_brain if main_brain else None,
        policy=None if recipe.policy is None else policy_from(recipe.policy),
    )


def activated_from(activation: Activation) -> pb.ActivateStudentModelResponse:
    """Converts an activation: which version answers now, and which did before."""
    current, previous = activation.current, activation.previous
    return pb.ActivateStudentModelResponse(
        student_id=current.ref.student_id,
        active_version=current.ref.version,
        previous_version=None if previous is None else previous.ref.version,
        sha256=current.sha256,
    )


def receipt_from(receipt: Receipt) -> student_pb.DeleteStudentResponse:
    """Converts a receipt: what was removed where."""
    clones, models = receipt.clones, receipt.models
    return student_pb.DeleteStudentResponse(
        student_id=receipt.student_id,
        delete_time=timestamp_from(receipt.erased_time),
        clones=student_pb.ErasedClones(
            clones=clones.clones, cancelled=receipt.cancelled_clones, request_ids=clones.request_ids
        ),
        models=student_pb.ErasedModels(versions=models.versions, objects=models.objects, bytes=models.bytes),
        brain=_evicted_from(receipt),
        alerts=receipt.alerts,
        residues=[
            student_pb.Residue(
                place=student_pb.ResiduePlace.Value(f"RESIDUE_PLACE_{residue.place.name}"),
                until=None if residue.until is None else timestamp_from(residue.until),
            )
            for residue in receipt.residues
        ],
    )


def _evicted_from(receipt: Receipt) -> student_pb.EvictedAdapters:
    brains = receipt.informed_brains
    return student_pb.EvictedAdapters(
        reached=receipt.evicted_adapters is not None,
        adapters=(receipt.evicted_adapters or 0) + (brains.adapters if brains else 0),
        listening=brains.listening if brains else None,
        confirmed=brains.confirmed if brains else None,
        forget_time=timestamp_from(receipt.forgotten_time) if receipt.forgotten_time else None,
    )


def _metrics_from(metrics: Metrics) -> student_model_pb2.TrainingMetrics:
    rounded = replace(metrics, seconds_per_step=round(metrics.seconds_per_step, 4), seconds=round(metrics.seconds, 2))
    return student_model_pb2.TrainingMetrics(**asdict(rounded))


def _list_name(student_id: str) -> str:
    return f"models of {student_id}"


def timestamp_from(time: datetime) -> Timestamp:
    """A time as the contract has it."""
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def _examples_from(examples: Examples) -> student_model_pb2.ExampleCounts:
    counts = asdict(examples)
    # Stored manifests have the older name.
    counts["responses"] = counts.pop("given")
    return student_model_pb2.ExampleCounts(**counts)

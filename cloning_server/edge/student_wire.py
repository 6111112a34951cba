"""Between the contract's messages about a student's models and the domain, both ways."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from aivo.cloning.v1 import cloning_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from cloning_server.edge.order_wire import check_id
from cloning_server.students.erasure import Receipt
from mesh.adapters.manifest import Manifest
from mesh.adapters.pointer import ActiveAdapter
from mesh.adapters.ref import validate_student_id
from mesh.rpc.validation import Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentVersion:
    """A version that a request names, whether or not it exists."""

    student_id: str
    version: int


def student_id_from(request: pb.ListStudentModelsRequest | pb.DeleteStudentRequest) -> str:
    """Parses whose models are meant.

    Raises:
        InvalidField: The id is malformed.
    """
    return validate_student_id(request.student_id)


def version_from(request: pb.ActivateStudentModelRequest | pb.PinStudentModelRequest) -> StudentVersion:
    """Parses which version is meant.

    Raises:
        InvalidField: With every fault of the request.
    """
    fields = Fields()
    check_id(fields, "student_id", request.student_id)
    if request.version < 1:
        fields.refuse("version", "must be 1 or more")
    fields.raise_if_any()
    return StudentVersion(student_id=request.student_id, version=request.version)


def pinned_from(request: pb.PinStudentModelRequest) -> bool:
    """Parses whether the version shall stay; it shall if nothing is said."""
    return request.pinned if request.HasField("pinned") else True


def models_from(
    student_id: str, manifests: Sequence[Manifest], *, active_version: int, pinned: Collection[int]
) -> pb.ListStudentModelsResponse:
    """Tells of a student's versions, given oldest first."""
    return pb.ListStudentModelsResponse(
        student_id=student_id,
        active_version=active_version,
        models=[
            model_from(manifest, active_version=active_version, pinned=manifest.ref.version in pinned)
            for manifest in reversed(manifests)
        ],
    )


def model_from(manifest: Manifest, *, active_version: int, pinned: bool = False) -> pb.StudentModel:
    """Tells of a version; the active one tells whether it is that."""
    recipe = manifest.recipe
    return pb.StudentModel(
        version=manifest.ref.version,
        active=manifest.ref.version == active_version,
        sha256=manifest.sha256,
        bytes=manifest.size_bytes,
        created_time=timestamp_from(manifest.created_time),
        clone_id=recipe.clone_id,
        base_model=recipe.base_model,
        base_digest=recipe.base_digest,
        lora=pb.LoraConfig(
            rank=recipe.lora.rank,
            alpha=recipe.lora.alpha,
            target_modules=recipe.lora.target_modules,
            scale=recipe.scale,
        ),
        # The names are the same on both sides; a manifest that gains one the contract lacks fails here.
        examples=pb.ExampleCounts(**asdict(recipe.examples)),
        metrics=pb.TrainingMetrics(**asdict(recipe.metrics)),
        pinned=pinned,
        data_digest=recipe.data_digest,
        seed=recipe.seed,
        started_from=pb.StartingVersion(**asdict(recipe.start)) if recipe.start else None,
    )


def activated_from(active: ActiveAdapter, *, before: ActiveAdapter | None) -> pb.ActivateStudentModelResponse:
    """Tells which version answers now, and which did before."""
    return pb.ActivateStudentModelResponse(
        student_id=active.ref.student_id,
        active_version=active.ref.version,
        previous_version=0 if before is None else before.ref.version,
        sha256=active.sha256,
    )


def receipt_from(receipt: Receipt) -> pb.DeleteStudentResponse:
    """Tells what was removed where."""
    clones, models = receipt.clones, receipt.models
    return pb.DeleteStudentResponse(
        student_id=receipt.student_id,
        deleted_time=timestamp_from(receipt.erased_time),
        clones=pb.ErasedClones(clones=clones.clones, cancelled=receipt.cancelled, request_ids=clones.request_ids),
        models=pb.ErasedModels(versions=models.versions, objects=models.objects, bytes=models.bytes),
        brain=pb.EvictedAdapters(reached=receipt.evicted is not None, adapters=receipt.evicted or 0),
    )


def timestamp_from(time: datetime) -> Timestamp:
    """A time as the contract has it."""
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp

"""Between ExportStudent's messages and the domain."""

from aivo.cloning.v1 import cloning_service_pb2 as clone_pb
from aivo.cloning.v1 import student_service_pb2 as pb
from google.protobuf.json_format import Parse
from google.protobuf.struct_pb2 import Struct

from cloning_server.clone import Baseline, BaselineResponse
from cloning_server.edge.student_wire import model_from, timestamp_from
from cloning_server.edge.wire import clone_from
from cloning_server.students.export import ExportedClone, ModelsAndAlerts, StudentExport
from mesh.adapters.manifest import Manifest
from mesh.alerts.wire import alert_from

# A page stays below what clients take (4 MiB), with room for what counts no bytes here.
MAX_PAGE_BYTES = (4 << 20) - (64 << 10)


def export_from(export: StudentExport, *, main_brain: str) -> pb.ExportStudentResponse:
    """Converts a page; `main_brain` is the digest of the one that runs, or empty."""
    response = pb.ExportStudentResponse(
        student_id=export.student_id,
        export_time=timestamp_from(export.exported_time),
        next_page_token=export.next_token,
    )
    if export.active_version is not None:
        response.active_version = export.active_version
    if export.rest is not None:
        _add_rest(response, export.rest, active_version=export.active_version, main_brain=main_brain)
    response.clones.extend(_clone_from(exported, active_version=export.active_version) for exported in export.clones)
    # Baselines last: of a page that has no room for all, responses are left out and counted.
    for exported, clone in zip(export.clones, response.clones, strict=True):
        if exported.baseline is not None:
            _add_baseline(clone, exported.baseline, room=MAX_PAGE_BYTES - response.ByteSize())
    return response


def _add_rest(
    response: pb.ExportStudentResponse, rest: ModelsAndAlerts, *, active_version: int | None, main_brain: str
) -> None:
    for manifest in rest.versions.manifests:
        model = model_from(
            manifest,
            active_version=active_version,
            pinned=manifest.ref.version in rest.pinned,
            main_brain=main_brain,
        )
        response.models.add(model=model, manifest=_struct_from(manifest))
    response.more_models = rest.versions.next_below is not None
    response.alerts.extend(map(alert_from, rest.alerts))
    response.more_alerts = rest.has_more_alerts


def _clone_from(exported: ExportedClone, *, active_version: int | None) -> pb.ExportedClone:
    return pb.ExportedClone(
        clone=clone_from(exported.clone, active_version=active_version),
        request_id=exported.clone.request_id,
        baseline_unreadable=exported.is_baseline_unreadable,
    )


def _add_baseline(clone: pb.ExportedClone, baseline: Baseline, *, room: int) -> None:
    profile = baseline.profile
    clone.student_profile.CopyFrom(
        clone_pb.StudentProfile(
            grade=profile.grade or "",
            disability=profile.disability or "",
            learning_style=profile.learning_style or "",
            interests=baseline.interests,
        )
    )
    clone.baseline_data.CopyFrom(
        clone_pb.BaselineData(
            assessment_id=baseline.assessment_id, overall_score=baseline.overall_score, max_score=baseline.max_score
        )
    )
    for response in map(_response_from, baseline.responses):
        # As a field of the list: its tag and its length take up to six bytes.
        room -= response.ByteSize() + 6
        if room < 0:
            break
        clone.baseline_data.responses.append(response)
    clone.responses_left_out = len(baseline.responses) - len(clone.baseline_data.responses)


def _response_from(response: BaselineResponse) -> clone_pb.BaselineResponse:
    return clone_pb.BaselineResponse(
        item_id=response.item_id,
        subject=response.subject,
        skill=response.skill,
        question=response.question,
        reference_answer=response.reference_answer,
        student_answer=response.student_answer,
        is_correct=response.is_correct,
        score=response.score,
        teacher_feedback=response.teacher_feedback,
    )


def _struct_from(manifest: Manifest) -> Struct:
    return Parse(manifest.to_json(), Struct())

"""Calls to a brain that screens, and what its engine takes for harmful."""

from typing import Any

from aivo.brain.v1 import brain_service_pb2 as pb
from google.protobuf.json_format import ParseDict

from mesh.lm.guarding import HarmCategory
from testing.models.random_roles import role_manifest
from testing.scripted.engine import MAIN_BRAIN
from tests.brain_server.edge.conftest import Served

SAD = "I do not want to be here, nobody needs me"
ADA: dict[str, Any] = {"student_id": "ada", "grade": "4"}


def give_guard(served: Served) -> None:
    """Gives a brain a guard that takes three phrases for harmful."""
    served.engine.has_guard(role_manifest(b"weights", role="guard", base_digest=MAIN_BRAIN))
    served.engine.harmful = {
        "nobody needs me": HarmCategory.SELF_HARM,
        "gunpowder": HarmCategory.VIOLENCE,
        "first mix": HarmCategory.VIOLENCE,
    }


def request_of(prompt: str, **fields: Any) -> pb.GenerateRequest:
    request: pb.GenerateRequest = ParseDict({"prompt": prompt, "context": ADA, **fields}, pb.GenerateRequest())
    return request


def request_of_stream(prompt: str) -> pb.GenerateStreamRequest:
    return pb.GenerateStreamRequest(prompt=prompt, context=pb.StudentContext(**ADA))


async def stream_of(served: Served, prompt: str) -> tuple[list[str], pb.Finished]:
    messages = [message async for message in served.brain.GenerateStream(request_of_stream(prompt))]
    assert [message.sequence for message in messages] == list(range(1, len(messages) + 1))
    return [message.text for message in messages[:-1]], messages[-1].finished

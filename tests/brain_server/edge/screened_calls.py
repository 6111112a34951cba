"""Calls to a brain that screens."""

from typing import Any

from aivo.brain.v1 import brain_service_pb2 as pb
from google.protobuf.json_format import ParseDict

from tests.brain_server.edge.conftest import Served

SAD = "I do not want to be here, nobody needs me"
ADA: dict[str, Any] = {"student_id": "ada", "grade": "4"}


def request_of(prompt: str, **fields: Any) -> pb.GenerateRequest:
    request: pb.GenerateRequest = ParseDict({"prompt": prompt, "context": ADA, **fields}, pb.GenerateRequest())
    return request


def request_of_stream(prompt: str) -> pb.GenerateStreamRequest:
    return pb.GenerateStreamRequest(prompt=prompt, context=pb.StudentContext(**ADA))


async def stream_of(served: Served, prompt: str) -> tuple[list[str], pb.Finished]:
    messages = [message async for message in served.brain.GenerateStream(request_of_stream(prompt))]
    assert [message.sequence for message in messages] == list(range(1, len(messages) + 1))
    return [message.text for message in messages[:-1]], messages[-1].finished

"""A scripted brain: a real gRPC server whose AdapterService loads nothing and returns the sha256 that it would load."""

import asyncio
from collections import deque

from aivo.brain.v1 import adapter_service_pb2 as pb
from aivo.brain.v1.adapter_pb2 import Adapter
from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceServicer, add_AdapterServiceServicer_to_server

from mesh.adapters.store import AdapterStore
from mesh.rpc.calls import Context
from mesh.rpc.server import Server
from testing.parts.part import free_ports

SERVICE = "aivo.brain.v1.AdapterService"


class ScriptedBrain(AdapterServiceServicer):
    """Pretends to load the versions that are in the adapter store.

    Attributes:
        address: Where it listens while it runs.
        warm_called: Is set by each WarmAdapter call.
        faults: Each WarmAdapter call removes the first, if there is one, and fails with it.
        warmed_versions: The student and version of each successful WarmAdapter call, in order.
        evicted_students: The student of each EvictAdapter call, in order.
        hold: WarmAdapter calls wait until it is set.
    """

    def __init__(self, store: AdapterStore) -> None:
        (self._port,) = free_ports(1)
        self.address = f"127.0.0.1:{self._port}"
        self.warm_called = asyncio.Event()
        self.faults: deque[Exception] = deque()
        self.warmed_versions: list[tuple[str, int]] = []
        self.evicted_students: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self._store = store
        self._server: Server | None = None

    async def start(self) -> None:
        self._server = Server(host="127.0.0.1", port=self._port, metrics_port=None, drain_seconds=0)
        self._server.add(add_AdapterServiceServicer_to_server, self, service=SERVICE, ready=lambda: True)
        await self._server.start()

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    async def WarmAdapter(self, request: pb.WarmAdapterRequest, context: Context) -> pb.WarmAdapterResponse:
        self.warm_called.set()
        await self.hold.wait()
        if self.faults:
            raise self.faults.popleft()
        adapter = await self._store.fetch(self._store.ref(request.student_id, request.version))
        self.warmed_versions.append((request.student_id, request.version))
        return pb.WarmAdapterResponse(
            adapter=Adapter(student_id=request.student_id, version=request.version, sha256=adapter.manifest.sha256),
            probe_tokens=8,
        )

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Context) -> pb.ListAdaptersResponse:
        return pb.ListAdaptersResponse()

    async def EvictAdapter(self, request: pb.EvictAdapterRequest, context: Context) -> pb.EvictAdapterResponse:
        self.evicted_students.append(request.student_id)
        versions = {version for student_id, version in self.warmed_versions if student_id == request.student_id}
        return pb.EvictAdapterResponse(
            adapters=[Adapter(student_id=request.student_id, version=version) for version in sorted(versions)]
        )

"""RPC → event."""

from typing import Any

import grpc
import grpc.aio

from elasticdl.core import job
from elasticdl.master import loop
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import elasticdl_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]


class Service(elasticdl_pb2_grpc.MasterServicer):
    """Decodes a call, passes it to the loop, encodes the answer."""

    def __init__(self, loop: loop.Loop) -> None:
        self._loop = loop

    async def Register(self, request: pb.RegisterRequest, context: _Context) -> pb.RegisterReply:
        return self._loop.registered()

    async def Join(self, request: pb.JoinRequest, context: _Context) -> pb.JoinReply:
        try:
            return await self._loop.join(request)
        except loop.Superseded:
            await context.abort(grpc.StatusCode.CANCELLED, "superseded")

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: _Context) -> pb.HeartbeatReply:
        return self._loop.heartbeat(request)

    async def Lease(self, request: pb.LeaseRequest, context: _Context) -> pb.LeaseReply:
        return self._loop.lease(request)

    async def Finish(self, request: pb.FinishRequest, context: _Context) -> pb.FinishReply:
        return self._loop.finish(request)

    async def Fail(self, request: pb.FailRequest, context: _Context) -> pb.FailReply:
        self._loop.post(job.Failed(request.kind, request.message, request.trace, request.worker))
        return pb.FailReply()

    async def Status(self, request: pb.StatusRequest, context: _Context) -> pb.JobStatus:
        return self._loop.status()

    async def Stop(self, request: pb.StopRequest, context: _Context) -> pb.StopReply:
        self._loop.post(job.StopAsked(request.reason or "Stopped on request."))
        return pb.StopReply()

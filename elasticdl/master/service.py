"""RPC → event."""

import time
from collections.abc import AsyncIterator
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
        self._watching: dict[str, float] = {}

    def watched(self, within_s: float) -> bool:
        """Whether somebody asked in the last `within_s` seconds, and was not told of an end."""
        now = time.monotonic()
        return any(now - asked < within_s for asked in self._watching.values())

    async def Register(self, request: pb.RegisterRequest, context: _Context) -> pb.RegisterReply:
        return self._loop.registered()

    async def Join(self, request: pb.JoinRequest, context: _Context) -> pb.JoinReply:
        try:
            return await self._loop.join(request)
        except loop.Superseded:
            # Another call of this worker waits in its place; or it finds the next master.
            await context.abort(grpc.StatusCode.UNAVAILABLE, "superseded")

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: _Context) -> pb.HeartbeatReply:
        try:
            return self._loop.heartbeat(request)
        except loop.Superseded as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    async def Follow(
        self, request: pb.OrdersRequest, context: _Context
    ) -> AsyncIterator[pb.Orders]:
        async for orders in self._loop.follow(request):
            yield orders

    async def Leave(self, request: pb.LeaveRequest, context: _Context) -> pb.LeaveReply:
        return self._loop.leave(request)

    async def Lease(self, request: pb.LeaseRequest, context: _Context) -> pb.LeaseReply:
        return self._loop.lease(request)

    async def Finish(self, request: pb.FinishRequest, context: _Context) -> pb.FinishReply:
        try:
            return self._loop.finish(request)
        except loop.Superseded as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    async def Fail(self, request: pb.FailRequest, context: _Context) -> pb.FailReply:
        return self._loop.fail(request)

    async def Status(self, request: pb.StatusRequest, context: _Context) -> pb.JobStatus:
        status = self._loop.status()
        if self._loop.job.over:
            self._watching.pop(context.peer(), None)
        else:
            self._watching[context.peer()] = time.monotonic()
        return status

    async def Stop(self, request: pb.StopRequest, context: _Context) -> pb.StopReply:
        self._loop.post(job.StopAsked(request.reason or "Stopped on request."))
        return pb.StopReply()

    async def Scale(self, request: pb.ScaleRequest, context: _Context) -> pb.ScaleReply:
        return self._loop.scale(request)

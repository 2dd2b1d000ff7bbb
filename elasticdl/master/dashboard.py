"""A job's status over HTTP; it only reads."""

import contextlib
import math
from collections.abc import Callable, Generator
from typing import Any

import uvicorn
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from elasticdl.wire import elasticdl_pb2 as pb


def plain(status: pb.JobStatus) -> dict[str, Any]:
    """The status as JSON has it; numbers that are not known are None."""
    found: dict[str, Any] = json_format.MessageToDict(
        status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for name, field in status.DESCRIPTOR.fields_by_name.items():
        if field.type in (field.TYPE_INT64, field.TYPE_UINT64):
            found[name] = int(found[name])  # as text, JSON's own readers could not calculate
        elif field.type == field.TYPE_DOUBLE and not math.isfinite(getattr(status, name)):
            found[name] = None
    return found


def application(status: Callable[[], pb.JobStatus]) -> Starlette:
    """Answers with what `status` says at the time."""

    async def show(request: Request) -> Response:
        return JSONResponse(plain(status()))

    return Starlette(routes=[Route("/", show), Route("/status.json", show)])


class _Server(uvicorn.Server):
    """Leaves signals to the process whose part it is."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def server(status: Callable[[], pb.JobStatus], host: str, port: int) -> uvicorn.Server:
    """To be run in the event loop; ends when its `should_exit` is set."""
    settings = uvicorn.Config(
        application(status),
        host=host,
        port=port,
        log_level="warning",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    return _Server(settings)

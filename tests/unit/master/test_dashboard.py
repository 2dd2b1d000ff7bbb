"""The status as JSON says what the message says, and nothing that JSON cannot."""

import asyncio
import json
import math
import urllib.request

from elasticdl.cluster import remote
from elasticdl.master import dashboard
from elasticdl.wire import elasticdl_pb2 as pb

STATUS = pb.JobStatus(
    job_name="j",
    phase="running",
    version=1 << 40,
    loss=math.nan,
    seconds_left=math.inf,
    records_per_s=12.5,
    metrics={"accuracy": pb.Value(numbers=[0.5])},
    workers=[pb.WorkerStatus(worker="worker-0", phase="member", streams=[0, 1])],
    notices=["a", "b"],
)


def test_numbers_are_numbers_and_what_is_not_known_is_null():
    said = json.loads(json.dumps(dashboard.plain(STATUS), allow_nan=False))
    assert said["version"] == 1 << 40
    assert said["loss"] is None
    assert said["seconds_left"] is None
    assert said["records_per_s"] == 12.5
    assert said["workers"][0]["streams"] == [0, 1]
    assert said["failure_message"] == ""


def test_it_is_served():
    async def asked():
        server = dashboard.server(lambda: STATUS, "127.0.0.1", 0)
        serving = asyncio.get_running_loop().create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        host, port = server.servers[0].sockets[0].getsockname()
        found = [await asyncio.to_thread(read, f"http://{host}:{port}{p}") for p in PATHS]
        server.should_exit = True
        await serving
        return found

    first, second = asyncio.run(asked())
    assert first == second
    assert first["notices"] == ["a", "b"]


PATHS = ("/", "/status.json")


def read(url):
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def test_what_a_master_leaves_behind_is_read_back():
    known = pb.JobStatus()
    known.CopyFrom(STATUS)
    known.ClearField("loss")
    known.ClearField("seconds_left")
    assert remote.status_of(json.loads(json.dumps(dashboard.plain(STATUS)))) == known

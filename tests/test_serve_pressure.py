"""`kit serve` under load, at its bounds, while it ends, and while models change under it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import psutil
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from apps.serve.guard import Bodies
from apps.serve.refusals import Refused
from kit.bundle import pack
from tests import graphs
from tests.helpers.serving import Reply, Server, ask, free_port, question, serving, until

posix = pytest.mark.skipif(os.name != "posix", reason="signals and forks are those of POSIX")


def x(value: float) -> dict[str, Any]:
    return {"x": np.array([[value]], np.float32)}


def three(value: float) -> dict[str, Any]:
    return {"x": np.full((1, 3), value, np.float32)}


def all_answered(replies: list[Reply]) -> list[Reply]:
    """Return the replies if all are answers: of several workers, one may not be ready yet."""
    return replies if all(reply.status == 200 for reply in replies) else []


def first(reply: Reply) -> float:
    assert reply.status == 200, reply.body
    return reply.json()["outputs"][0]["data"][0]


def raw_infer(name: str, values: dict[str, Any]) -> bytes:
    import orjson

    body = orjson.dumps(question(values))
    return b"POST /v2/models/%s/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (
        name.encode(),
        len(body),
        body,
    )


def status_of(connection: socket.socket) -> int:
    """Return the status of what a bare connection receives; 0 if it was cut off."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while b"\r\n" not in got:
            more = connection.recv(4096)
            if not more:
                break
            got += more
    return int(got.split(b" ")[1]) if got else 0


@contextlib.contextmanager
def together(count: int, call: Callable[[], Reply]) -> Iterator[list[Any]]:
    """Call in so many threads at once; gives the futures."""
    with ThreadPoolExecutor(count) as pool:
        yield [pool.submit(call) for _ in range(count)]


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A bundle of a model that takes as long as it is told."""
    return graphs.bundle(graphs.slow(), tmp_path / "slow", name="slow").folder


def packed(model: onnx.ModelProto, folder: Path, *, off_by: float = 0.0) -> Path:
    """Return a bundle as one file."""
    folder.mkdir()
    made = pack(graphs.bundle(model, folder / "model", off_by=off_by), folder)
    return made.rename(folder / "model.kit")  # a name without a hash, so that another may take its place


def test_a_full_queue_refuses_with_the_time_to_try_again(slow: Path, tmp_path: Path) -> None:
    with serving(tmp_path, slow, "--max-queue", 1, "--max-batch", 1) as server:
        with together(6, lambda: server.infer("slow", x(400))) as asked:
            replies = [one.result() for one in asked]
        refused = [one for one in replies if one.status == 503]
        answered = [one for one in replies if one.status == 200]
        assert refused
        assert answered
        assert len(refused) + len(answered) == 6
        assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
        assert refused[0].json() == {"error": "too many requests wait for this model"}
        assert server.figure("kit_failures_total", model="slow", cause="full") == len(refused)
        assert first(server.infer("slow", x(3))) == 3


def test_a_request_that_waited_too_long_is_refused_and_never_computed(slow: Path, tmp_path: Path) -> None:
    with serving(tmp_path, slow, "--timeout", "200ms", "--max-batch", 1) as server:
        with together(3, lambda: server.infer("slow", x(1500))) as asked:
            replies = [one.result() for one in asked]
        assert sorted(one.status for one in replies) == [200, 504, 504]
        assert next(one for one in replies if one.status == 504).json() == {
            "error": "the deadline passed before the model ran"
        }
        assert first(server.infer("slow", x(3))) == 3
        assert server.figure("kit_call_rows_count") == 2


def test_a_body_that_is_too_large_is_refused_before_it_is_read(slow: Path, tmp_path: Path) -> None:
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: localhost\r\n"
    with serving(tmp_path, slow, "--max-body", 1000) as server:
        for sent in (
            head + b"content-length: 999999999999\r\n\r\n",
            head + b"transfer-encoding: chunked\r\n\r\n258\r\n" + b" " * 600 + b"\r\n258\r\n" + b" " * 600 + b"\r\n",
        ):
            with server.socket(sent) as connection:
                assert status_of(connection) == 413
        reply = server.post("/v2/models/slow/infer", b" " * 1001)
        assert reply.status == 413
        assert reply.json() == {"error": "a request may have 1,000 bytes at most"}
        assert server.post("/v2/models/slow/infer", b" " * 1000).status == 400


def test_a_client_that_sends_all_of_a_refused_body_sees_why_and_one_that_never_ends_is_cut_off(
    slow: Path, tmp_path: Path
) -> None:
    with serving(tmp_path, slow, "--max-body", 1000, "--timeout", "500ms") as server:
        with contextlib.closing(server.connection()) as connection:
            for _ in range(2):  # the connection is as good as before
                reply = ask(connection, "POST", "/v2/models/slow/infer", b" " * 20_000_000)
                assert reply.json() == {"error": "a request may have 1,000 bytes at most"}
        with server.socket(b"POST /v2/models/none/infer HTTP/1.1\r\nhost: localhost\r\n") as endless:
            endless.sendall(b"transfer-encoding: chunked\r\n\r\n")

            def is_cut() -> bool:
                try:
                    endless.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                except OSError:
                    return True
                return False

            until(is_cut)


def test_bodies_that_are_still_arriving_count_as_held() -> None:
    part = {"type": "http.request", "body": b"0" * 90, "more_body": True}

    async def both() -> tuple[int, int]:
        bodies = Bodies(100, 150)
        one: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        other: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        one.put_nowait(part)
        other.put_nowait(part)
        first_one = asyncio.create_task(bodies.read(None, one.get))
        second = asyncio.create_task(bodies.read(None, other.get))
        with pytest.raises(Refused) as caught:
            await second
        one.put_nowait({"type": "http.disconnect"})
        with pytest.raises(ConnectionError):
            await first_one
        other.put_nowait({"type": "http.request", "body": b"0" * 100})  # what was lost is held no longer
        return caught.value.status, len(await bodies.read(100, other.get))

    assert asyncio.run(both()) == (503, 100)


def test_what_nobody_waits_for_is_not_computed(slow: Path, tmp_path: Path) -> None:
    with serving(tmp_path, slow, "--max-batch", 1) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(server.socket(raw_infer("slow", x(500))))
            until(lambda: server.figure("kit_waiting_requests") == 4)
        assert first(server.infer("slow", x(3))) == 3
        assert server.figure("kit_call_rows_count") == 2  # the one that ran already, and this
        assert server.figure("kit_failures_total", cause="client_gone") == 5


def test_clients_that_send_too_slowly_are_cut_off(slow: Path, tmp_path: Path) -> None:
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: localhost\r\n"
    starts = (
        b"",
        b"POST /v2/mod",
        head,
        head + b"content-length: 100\r\n\r\n",
        head + b"content-length: 100\r\n\r\n{",
        head + b"transfer-encoding: chunked\r\n\r\n5\r\nab",
    )
    with (
        serving(tmp_path, slow, "--timeout", "300ms") as server,
        server.socket(head + b"content-length: 100000\r\n\r\n") as dripping,
        contextlib.ExitStack() as stack,
    ):
        stalled = [stack.enter_context(server.socket(start)) for start in starts]

        def is_cut() -> bool:
            try:
                dripping.sendall(b" ")
            except OSError:
                return True
            return False

        until(is_cut)
        assert [status_of(one) for one in stalled] == [0] * len(stalled)
        assert first(server.infer("slow", x(3))) == 3


def test_clients_that_read_too_slowly_are_cut_off(tmp_path: Path) -> None:
    folder = graphs.bundle(graphs.times(2), tmp_path / "model").folder
    values = np.ones((2_000_000, 3), np.float32).tobytes()
    told = {"name": "x", "datatype": "FP32", "shape": [2_000_000, 3], "parameters": {"binary_data_size": len(values)}}
    head = json.dumps({"inputs": [told], "parameters": {"binary_data_output": True}}).encode()
    with serving(tmp_path, folder, "--timeout", "300ms") as server, socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", server.port))
        reader.sendall(
            b"POST /v2/models/model/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n"
            b"inference-header-content-length: %d\r\n\r\n" % (len(head) + len(values), len(head))
        )
        reader.sendall(head + values)

        process, own = psutil.Process(server.process.pid), reader.getsockname()[1]

        def is_held() -> bool:
            reader.recv(500)
            return any(one.raddr and one.raddr.port == own for one in process.net_connections())

        assert is_held()
        until(lambda: not is_held())
        with contextlib.closing(server.connection()) as connection:  # who reads as it comes gets all of it
            reply = ask(
                connection,
                "POST",
                "/v2/models/model/infer",
                head + values,
                inference_header_content_length=str(len(head)),
            )
        assert len(reply.body) > len(values)


@posix
def test_a_server_that_ends_answers_grpc_that_it_took_and_takes_no_more(slow: Path, tmp_path: Path) -> None:
    port = free_port()
    asked = pb.ModelInferRequest(model_name="slow", raw_input_contents=[x(400)["x"].tobytes()])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    with (
        serving(tmp_path, slow, "--max-batch", 1, "--grpc-port", port) as server,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        server.socket() as kept,
    ):
        stub = stubs.GRPCInferenceServiceStub(channel)
        taken = [stub.ModelInfer.future(asked) for _ in range(2)]
        until(lambda: server.figure("kit_waiting_requests") == 1)
        kept.sendall(raw_infer("slow", x(1)))
        until(lambda: server.figure("kit_waiting_requests") == 2)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: not stub.ServerReady(pb.ServerReadyRequest()).ready)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(asked)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert [one.result().id for one in taken] == ["", ""]
        assert status_of(kept) == 200
        assert server.process.wait(timeout=20) == 0


@posix
def test_the_first_signal_lets_the_last_requests_end(slow: Path, tmp_path: Path) -> None:
    with serving(tmp_path, slow, "--max-batch", 1) as server:
        with together(2, lambda: server.infer("slow", x(500))) as asked:
            until(lambda: server.figure("kit_waiting_requests") == 1)
            assert server.end() == 0
        assert [first(one.result()) for one in asked] == [500, 500]
        assert "Traceback" not in server.log


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_stops(slow: Path, tmp_path: Path, number: int) -> None:
    with serving(tmp_path, slow, "--max-batch", 1) as server, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(server.socket(raw_infer("slow", x(500))))
        until(lambda: server.figure("kit_waiting_requests") == 2)
        server.process.send_signal(number)

        def is_closed() -> bool:
            try:
                server.socket().close()
            except OSError:
                return True
            return False

        until(is_closed)
        assert server.end(number) == 1
        assert "Traceback" not in server.log


def test_a_model_that_breaks_its_promise_is_not_ready(tmp_path: Path) -> None:
    bad = graphs.bundle(graphs.times(2), tmp_path / "bad", name="bad", off_by=1).folder
    good = graphs.bundle(graphs.times(3), tmp_path / "good", name="good").folder
    with serving(tmp_path, bad, good, wait=False) as server:
        until(lambda: server.get("/v2/models/good/ready").status == 200)
        until(lambda: "does not give here what its bundle promises" in server.log)
        assert server.get("/v2/health/live").status == 200
        assert server.get("/v2/health/ready").status == 503
        assert server.get("/v2/models/bad/ready").status == 503
        reply = server.infer("bad", three(1))
        assert reply.status == 503
        assert "retry-after" in reply.headers
        assert first(server.infer("good", three(1))) == 3
        states = {one["name"]: one["state"] for one in server.post("/v2/repository/index").json()}
        assert states == {"bad": "UNAVAILABLE", "good": "READY"}


def test_a_replaced_file_takes_over_once_it_is_proved_and_no_request_is_lost(tmp_path: Path) -> None:
    served = packed(graphs.times(2), tmp_path / "first")
    better = packed(graphs.times(3), tmp_path / "second")
    broken = packed(graphs.times(4), tmp_path / "third", off_by=1)
    ended = threading.Event()
    with (
        serving(tmp_path, f"model={served}", settings={"watch_every": 0.05}) as server,
        ThreadPoolExecutor(3) as pool,
    ):

        def client() -> list[float]:
            """Ask without a pause over one connection, and return what answers there were, one after the other."""
            seen = [0.0]
            with contextlib.closing(server.connection()) as connection:
                while not ended.is_set():
                    answer = first(ask(connection, "POST", "/v2/models/model/infer", question(three(1))))
                    if answer != seen[-1]:
                        seen.append(answer)
            return seen[1:]

        clients = [pool.submit(client) for _ in range(3)]
        try:
            better.replace(served)
            until(lambda: first(server.infer("model", three(1))) == 3)
            broken.replace(served)
            until(lambda: server.figure("kit_refused_swaps_total", model="model") == 1)
            served.write_bytes(b"PK no bundle")
            until(lambda: server.figure("kit_refused_swaps_total", model="model") == 2)
            assert server.is_ready()
        finally:
            ended.set()
        assert all(one.result() in ([2, 3], [3]) for one in clients)
        assert server.figure("kit_failures_total") == 0
        assert server.log.count("kept_old True") == 2


def test_a_watch_outlives_a_folder_that_goes_and_comes(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    graphs.bundle(graphs.times(2), folder / "model")
    better = graphs.bundle(graphs.times(3), tmp_path / "better").folder
    with serving(tmp_path, folder, settings={"watch_every": 0.05}) as server:
        folder.rename(tmp_path / "away")
        until(lambda: "not looked at" in server.log)
        assert first(server.infer("model", three(1))) == 2
        folder.mkdir()
        better.rename(folder / "model")
        until(lambda: first(server.infer("model", three(1))) == 3)


def test_models_come_and_go_by_command(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    graphs.bundle(graphs.times(2), folder / "two")
    with serving(tmp_path, folder) as server:
        control = "/v2/repository/models"
        assert server.post(f"{control}/three/load").status == 404
        graphs.bundle(graphs.times(3), folder / "three")
        assert server.post(f"{control}/three/load", {}).status == 200
        assert first(server.infer("three", three(1))) == 3
        assert server.post(f"{control}/two/unload").status == 200
        assert server.infer("two", three(1)).status == 503
        assert server.is_ready()  # what was unloaded is not waited for
        assert server.post("/v2/repository/index", {"ready": True}).json() == [
            {"name": "three", "version": "1", "state": "READY", "reason": ""}
        ]
        assert server.post(f"{control}/two/load").status == 200
        assert first(server.infer("two", three(1))) == 2
        assert server.post(f"{control}/two/load", {"parameters": {"config": "{}"}}).status == 400
        shutil.rmtree(folder / "two")
        assert server.post(f"{control}/two/load").status == 400
        assert first(server.infer("two", three(1))) == 2  # the old one goes on


def test_a_model_that_is_unloaded_answers_first_what_it_was_asked(slow: Path, tmp_path: Path) -> None:
    with serving(tmp_path, slow, "--max-batch", 1) as server:
        with together(3, lambda: server.infer("slow", x(300))) as asked:
            until(lambda: server.figure("kit_waiting_requests") == 2)
            assert server.post("/v2/repository/models/slow/unload").status == 200
            assert all(one.done() or one.result(timeout=1) for one in asked)
        assert [first(one.result()) for one in asked] == [300] * 3
        assert server.infer("slow", x(1)).status == 503


def test_a_model_that_failed_is_ready_once_a_better_file_has_come(tmp_path: Path) -> None:
    served = packed(graphs.times(2), tmp_path / "first", off_by=1)
    better = packed(graphs.times(3), tmp_path / "second")
    with serving(tmp_path, f"model={served}", settings={"watch_every": 0.05}, wait=False) as server:
        until(lambda: "not loaded" in server.log)
        better.replace(served)
        until(server.is_ready)
        assert first(server.infer("model", three(1))) == 3


def test_versions_stand_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    graphs.bundle(graphs.times(1), folder / "model" / "1")
    graphs.bundle(graphs.times(10), folder / "model" / "10")
    graphs.bundle(graphs.times(9), folder / "model" / "9")
    with serving(tmp_path, folder) as server:
        assert first(server.infer("model", three(1))) == 10
        assert first(server.post("/v2/models/model/versions/9/infer", question(three(1)))) == 9
        assert server.post("/v2/models/model/versions/2/infer", question(three(1))).status == 404
        assert sorted(server.get("/v2/models/model").json()["versions"]) == ["1", "10", "9"]
        graphs.bundle(graphs.times(11), folder / "model" / "11")
        assert server.post("/v2/repository/models/model/load").status == 200
        assert first(server.infer("model", three(1))) == 11
        assert server.post("/v2/repository/models/model/unload").status == 200
        assert server.get("/v2/models/model/versions/1/ready").status == 503
        assert server.post("/v2/repository/models/model/load").status == 200
        assert first(server.post("/v2/models/model/versions/1/infer", question(three(1)))) == 1


def test_nothing_outside_the_folders_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    graphs.bundle(graphs.times(2), folder / "model")
    graphs.bundle(graphs.times(3), tmp_path / "outside")
    names = ("../outside", "..%2foutside", "%2e%2e%2foutside", "..", "%2e%2e", ".", str(tmp_path / "outside"))
    names += (f"%2f{tmp_path}%2foutside", "model/../../outside", "outside", "model%00", "..%5coutside", "%c0%ae%c0%ae")
    with serving(tmp_path, folder) as server:
        for name in names:
            for path in (f"/v2/repository/models/{name}/load", f"/v2/models/{name}/infer", f"/v1/models/{name}/schema"):
                assert server.post(path).status in {400, 404, 405}, path
        assert [one["name"] for one in server.post("/v2/repository/index").json()] == ["model"]


def workers_of(server: Server) -> set[int]:
    return {one.pid for one in psutil.Process(server.process.pid).children()}


@pytest.mark.slow
@posix
def test_workers_share_the_port_and_their_figures_and_dead_ones_are_replaced(tmp_path: Path) -> None:
    folder = graphs.bundle(graphs.times(2), tmp_path / "model").folder
    with serving(tmp_path, folder, "--workers", 2) as server:
        before = until(lambda: len(workers_of(server)) == 2 and workers_of(server))
        with together(8, lambda: server.infer("model", three(1))) as asked:
            assert [first(one.result()) for one in asked] == [2] * 8
        assert server.figure("kit_call_rows_sum") == 8
        for pid in before:  # both at once
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(workers_of(server) - before) == 2 and server.is_ready())
        assert first(server.infer("model", three(1))) == 2
        assert server.end() == 0


@pytest.mark.slow
@posix
def test_a_new_worker_serves_what_lies_on_the_disk_now(tmp_path: Path) -> None:
    served = packed(graphs.times(2), tmp_path / "first")
    better = packed(graphs.times(3), tmp_path / "second")
    with serving(tmp_path, f"model={served}", settings={"workers": 2, "watch_every": 60}) as server:
        before = until(lambda: len(workers_of(server)) == 2 and workers_of(server))
        better.replace(served)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(workers_of(server) - before) == 2 and server.is_ready())
        replies = until(lambda: all_answered([server.infer("model", three(1)) for _ in range(20)]))
        assert {first(reply) for reply in replies} == {3}


def test_a_port_of_grpc_that_is_taken_is_said_at_once(tmp_path: Path) -> None:
    folder = graphs.bundle(graphs.times(2), tmp_path / "model").folder
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serving(tmp_path, folder, "--grpc-port", port, wait=False) as server:
            assert server.process.wait(timeout=20) == 3
            assert f"127.0.0.1:{port} cannot be listened on" in server.log
            assert "Traceback" not in server.log
    with serving(tmp_path, folder, "--grpc-port", free_port()) as server:
        assert server.is_ready()


@pytest.mark.slow
def test_memory_stays_where_it_is(tmp_path: Path) -> None:
    folder = graphs.bundle(graphs.times(2), tmp_path / "model").folder
    rng = np.random.default_rng(0)
    with serving(tmp_path, folder) as server, contextlib.closing(server.connection()) as connection:
        process = psutil.Process(server.process.pid)

        def round_of_requests() -> int:
            for place in range(300):
                rows = int(rng.integers(1, 400))
                values = {"x": rng.normal(size=(rows, 3)).astype(np.float32)}
                reply = ask(connection, "POST", "/v2/models/model/infer", question(values))
                assert reply.json()["outputs"][0]["shape"] == [rows, 3]
                assert ask(connection, "POST", f"/v2/models/none-{place}/infer", b"x" * 1000).status == 404
                assert ask(connection, "POST", "/v2/models/model/infer", b"x" * 100_000).status == 400
            return process.memory_info().rss

        round_of_requests()
        before = round_of_requests()
        assert round_of_requests() - before < 16 * 2**20

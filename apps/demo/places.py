"""Where the bundles lie that a visitor may open, and which of them run without limits.

A path is resolved before it is judged, so that neither `..` nor a link leads past the limits. Trusted are the bundles that
came with kit, those under `./artifacts`, and the one that `kit demo` was started with. Everything else is a stranger's.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from kit import bundle as bundles
from kit import ready
from kit.bundle import ROOT, available
from kit.bundle.manifest import MANIFEST
from kit.bundle.packed import looks_packed
from kit.bundle.read import PACKAGED
from kit.errors import BundleInvalid, BundleNotFound

VISITORS = "kit-demo-"
"""How the folders of visitors begin, which lie where the system keeps temporary files."""

UPLOADED = "uploaded"
"""What stands behind the name of a bundle that came by upload."""

_Stamp = tuple[tuple[str, int, int], ...]
_listed: tuple[_Stamp, dict[str, str]] = ((), {})


def find(name: str) -> Path:
    """Return the place of a bundle or a ready model, resolved; nothing of it is opened.

    Args:
        name: A path, or a name under `./artifacts` or of a bundle that came with kit.

    Raises:
        BundleNotFound: There is none.
        BundleInvalid: Its place cannot be read.
    """
    try:
        for place in (Path(name), ROOT / name, PACKAGED / name):
            if (place / MANIFEST).is_file() or ready.is_ready(place) or looks_packed(place):
                return _resolved(place)
        if not Path(name).exists():
            return _resolved(bundles.find(name).origin)  # says which there are
    except (OSError, ValueError) as error:  # a folder that may not be entered, a name too long, a null character
        raise BundleInvalid(f"{name!r} cannot be read: {error}") from error
    raise BundleNotFound(f"there is no bundle {name!r}", hint="name a folder, a packed file (.kit) or a .onnx file")


def _resolved(place: Path) -> Path:
    found = place.resolve()
    shipped = PACKAGED.resolve()  # kit knows its own bundles by the path it was imported from
    return PACKAGED / found.relative_to(shipped) if found.is_relative_to(shipped) else found


def is_trusted(path: Path, told: Path | None) -> bool:
    """Whether a path runs without limits; `told` is what `kit demo` was started with, resolved."""
    found = path.resolve()
    return found == told or any(found.is_relative_to(root.resolve()) for root in (ROOT, PACKAGED))


def is_of_visitors(path: Path) -> bool:
    """Whether a path lies in the folder of any visitor, of this server or another."""
    found, temporary = path.resolve(), Path(tempfile.gettempdir()).resolve()
    inside = found.relative_to(temporary).parts if found.is_relative_to(temporary) else ()
    return bool(inside) and inside[0].startswith(VISITORS)


def stamp(path: Path) -> tuple[str, int, int] | None:
    """Return what differs if the file changes, or the manifest of a folder; None if it is not there."""
    try:
        known = (path / MANIFEST if path.is_dir() else path).stat()
    except OSError:
        return None
    return str(path), known.st_mtime_ns, known.st_size


def listed() -> dict[str, str]:
    """Return the paths of this machine's bundles by name; their manifests are read again only if one has changed."""
    global _listed  # noqa: PLW0603 - shared by all visitors
    folders = [manifest.parent for root in (PACKAGED, ROOT) for manifest in sorted(root.glob(f"*/{MANIFEST}"))]
    seen = tuple(one for one in map(stamp, folders) if one is not None)
    if seen != _listed[0]:
        _listed = (seen, {one.name: str(_resolved(one.origin)) for one in available() if one.variants})
    return dict(_listed[1])

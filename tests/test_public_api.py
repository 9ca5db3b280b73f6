"""The door: what `import kit` and `import exporters` promise."""

from __future__ import annotations

import exporters
import kit
from kit import errors


def test_every_promised_name_is_importable() -> None:
    for name in kit.__all__:
        assert getattr(kit, name) is not None
    assert dir(kit) == sorted(kit.__all__)


def test_exporters_promises_what_it_has() -> None:
    for name in exporters.__all__:
        assert getattr(exporters, name) is not None


def test_every_error_is_at_the_door_and_has_the_exit_code_its_tree_says() -> None:
    tree = [line for line in (errors.__doc__ or "").splitlines() if line.startswith(("├", "└", "│", " ", "KitError"))]
    code = 5
    drawn = set()
    for line in tree:
        words = line.strip("│├└─ ").split()
        if not words or not words[0].isalpha():
            continue
        code = int(words[1]) if words[1].isdigit() else code
        kind = getattr(kit, words[0])
        assert kind.exit_code == code, words[0]
        drawn.add(words[0])
    defined = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, kit.KitError)}
    assert drawn == defined


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(kit, "nothing")
    assert not hasattr(exporters, "nothing")

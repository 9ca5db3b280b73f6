"""What a shell may offer for a word: bundles, variants, runtimes, data sets, metrics and files.

Given to click as `shell_complete`. Nothing is opened but manifests, and what cannot be read is not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from kit.errors import KitError

Offer = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]

_FILES, _FOLDERS = "file", "dir"
_MOST_FILES = 200  # beside names; a folder of a million pictures is the shell's own matter


def bundles(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem[str]]:
    """Offer bundles by name, and files."""
    from kit.bundle import lookup

    names = [*lookup.folders(), *(str(path) for path in lookup.packed_files())]
    return _beside_files(names, typed)


def variants(ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem[str]]:
    """Offer the variants of the bundle that was typed before, or of the default one."""
    from kit.bundle import find, is_bundle

    # click leaves arguments where they stood if the word to complete is that of an option.
    words = next((found for name in ("bundle", "arguments", "models") if (found := ctx.params.get(name))), ctx.args)
    name = words if isinstance(words, str) else next(iter(words), None)
    try:
        found = find(name if name is None or is_bundle(name) else None)
    except KitError:
        return []
    return _beginning(typed, (variant.id for variant in found.variants))


def runtimes(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem[str]]:
    """Offer the runtimes there are, and `all`."""
    from kit.runtime import registry

    return _beginning(typed, (*registry.names(), registry.ALL))


def datasets(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem[str]]:
    """Offer registered data sets, and files."""
    from kit import datasets

    return _beside_files(datasets.names(), typed)


def metrics(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem[str]]:
    """Offer the built-in metrics."""
    from kit import metrics

    return _beginning(typed, metrics.names())


def tasks(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem[str]]:
    """Offer the tasks there are."""
    from kit.tasks import registry

    return _beginning(typed, registry.names())


def words(*names: str, folders: bool = False) -> Offer:
    """Return what offers some words, and folders beside them if asked to."""

    def offer(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem[str]]:
        return _beside_files(names, typed, kind=_FOLDERS) if folders else _beginning(typed, names)

    return offer


def files(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem[str]]:
    """Offer files."""
    return [CompletionItem(typed, type=_FILES)]


def _beginning(typed: str, names: Iterable[str]) -> list[CompletionItem[str]]:
    return [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(typed)]


def _beside_files(names: Sequence[str], typed: str, *, kind: str = _FILES) -> list[CompletionItem[str]]:
    """Offer names with the files that begin alike; files alone are left to the shell, which knows them better."""
    named = _beginning(typed, names)
    return [*named, *_beginning(typed, _paths(typed, kind))] if named else [CompletionItem(typed, type=kind)]


def _paths(typed: str, kind: str) -> list[str]:
    try:
        found = sorted(path for path in Path().iterdir() if path.name.startswith(typed) and path.name[0] != ".")
    except OSError:
        return []
    listed = [(path.name, path.is_dir()) for path in found[:_MOST_FILES]]
    return [f"{name}/" if is_folder else name for name, is_folder in listed if is_folder or kind == _FILES]

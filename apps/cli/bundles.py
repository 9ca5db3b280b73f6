"""`kit list`, `kit info` and `kit upgrade`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from apps.cli import options
from kit.errors import KitError

if TYPE_CHECKING:
    from kit.bundle import Bundle, Packed


@click.command("list")
@options.as_json
@options.debug
def list_bundles(as_json: bool) -> None:
    """List the bundles under ./artifacts, packed ones too, and those that came with kit.

    \b
    Example:
      kit list
    """
    from apps.cli import bundle_tables, render
    from kit.bundle import scan, scan_packed

    found = {**scan(), **scan_packed()}
    if as_json:
        render.print_json([_row(name, item) for name, item in found.items()])
    elif found:
        bundle_tables.bundle_table(found)
    else:
        render.remark("No bundles here.")
        render.next_steps(
            ("kit quickstart", "train and export the first one"),
            ("kit export model.onnx", "make one of a model of yours"),
        )


def _row(name: str, item: Bundle | Packed | KitError) -> dict[str, object]:
    from kit.bundle import Bundle
    from kit.bundle.lookup import came_with_kit

    if isinstance(item, KitError):
        return {"name": name, "broken": str(item)}
    where = "folder" if item.origin.is_dir() else "file"
    task = item.manifest.task.name if item.manifest.task else None
    variants = [variant.id for variant in item.manifest.variants]
    about: dict[str, object] = {"name": name, where: str(item.origin), "task": task, "variants": variants}
    return {**about, "came_with_kit": came_with_kit(item)} if isinstance(item, Bundle) else about


@click.command(epilog=options.MODEL_HELP)
@options.bundle_argument
@options.as_json
@options.debug
def info(bundle: str | None, as_json: bool) -> None:
    """Show what a BUNDLE takes and gives, where it comes from, and its variants with their figures.

    A ready model.onnx will do as well: its inputs, outputs and axes, and what is not known of it.

    \b
    Examples:
      kit info mnist-mlp
      kit info model.onnx
    """
    from apps.cli import bundle_tables, render
    from kit import ready

    found = ready.find(bundle)
    if as_json:
        render.print_json(found.manifest)
    else:
        bundle_tables.bundle_info(found)


@click.command(epilog=options.BUNDLE_HELP)
@options.bundle_argument
@options.debug
def upgrade(bundle: str | None) -> None:
    """Rewrite the manifest of a BUNDLE that an earlier kit made; its models and samples stay as they are.

    A bundle whose task has a way in, such as pictures, gets the proof of it if it has none: raw items, and the tensors they
    become here. Every command reads earlier manifests without this. A manifest that was rewritten can no longer be read by
    the kit that made it.

    \b
    Example:
      kit upgrade my-mnist-mlp
    """
    from apps.cli import render
    from kit import bundle as bundles
    from kit.bundle.manifest import MANIFEST, SCHEMA_VERSION
    from kit.errors import PackageMissing
    from kit.tasks.proof import items_of
    from kit.tasks.registry import task_of

    found = bundles.find(bundle)
    bundles.refuse_packed(found)
    try:
        items = None if found.manifest.golden.items else items_of(task_of(found))
    except PackageMissing:  # tensors need no task
        items = None
    path = found.folder / MANIFEST
    before = path.read_bytes()
    done = bundles.upgrade(found, items=items)
    if path.read_bytes() == before:
        render.remark(f"{done.name} had the newest manifest already, version {SCHEMA_VERSION}.")
        return
    render.remark(f"{done.name}: its manifest is of version {SCHEMA_VERSION} now.")
    render.next_steps((f"kit verify {bundle or done.name}", "prove that all of it is as it was"))

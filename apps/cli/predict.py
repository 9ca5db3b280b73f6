"""`kit predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apps.cli import options
from kit.choices import Provider
from kit.errors import KitError, PictureInvalid, UsageError

if TYPE_CHECKING:
    from kit.engine import Engine

_STDIN = "-"


@click.command(epilog=options.BUNDLE_HELP)
@click.argument("arguments", nargs=-1, required=True, metavar="[BUNDLE] PICTURE...")
@click.option("--variant", help="[default: what kit tune chose here, else the bundle's]")
@options.one_provider
@click.option("--threads", type=click.IntRange(1), help="Threads one operator may use.  [default: 1]")
@click.option("--json", "as_json", is_flag=True, help="One JSON list of files, labels and probabilities.")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="One JSON object on each line.")
@click.option("--csv", "as_csv", is_flag=True, help="One line each, probabilities in columns.")
@options.debug
def predict(
    arguments: tuple[str, ...],
    variant: str | None,
    provider: Provider | None,
    device_id: int,
    allow_fallback: bool,
    threads: int | None,
    as_json: bool,
    as_jsonl: bool,
    as_csv: bool,
) -> int:
    """Read pictures: PNG or JPEG files of any size and polarity, folders of them, or - for one on stdin.

    The first argument may name a bundle. A picture that cannot be read is reported, the others are still answered, and the
    exit code is 4.

    \b
    Examples:
      kit predict photo.jpg
      kit predict mnist-mlp scans/ --csv > answers.csv
    """
    from kit import engine as engines
    from kit.bundle import is_bundle

    forms = [name for name, chosen in (("json", as_json), ("jsonl", as_jsonl), ("csv", as_csv)) if chosen]
    if len(forms) > 1:
        raise UsageError(f"--{forms[0]} and --{forms[1]} exclude each other")
    names_bundle = arguments[0] != _STDIN and is_bundle(arguments[0])
    bundle, sources = (arguments[0], arguments[1:]) if names_bundle else (None, arguments)
    if not sources:
        raise UsageError(f"no picture to read with bundle {bundle!r}", hint=f"kit predict {bundle} PICTURE")
    if provider is None and (device_id or allow_fallback):
        raise UsageError("--device-id and --allow-fallback change nothing on the CPU", hint="add --provider cuda")
    pictures = list(_pictures(sources))
    with engines.load(
        bundle,
        variant=variant,
        provider=provider,
        threads=threads,
        device_id=device_id,
        allow_fallback=allow_fallback,
    ) as engine:
        records, failed = [], 0
        for name, picture in pictures:
            try:
                records.append(_answer(engine, name, picture))
            except KitError as error:
                if len(pictures) == 1:
                    raise
                failed += 1
                click.echo(f"Error: {name}: {error}", err=True)
                records.append({"file": name, "error": str(error)})
    _show(records, forms[0] if forms else "", engine.spec.labels)
    return PictureInvalid.exit_code if failed else 0


def _answer(engine: Engine, name: str, picture: Path | bytes) -> dict[str, Any]:
    from kit.engine import as_record

    return as_record(engine.predict(picture), engine.spec, file=name)


def _pictures(sources: tuple[str, ...]) -> Iterator[tuple[str, Path | bytes]]:
    """Give each picture with its name; a folder gives those in it, sorted."""
    from kit.bundle import scan
    from kit.tasks.images import SUFFIXES

    for source in sources:
        path = Path(source)
        if source == _STDIN:
            yield _STDIN, sys.stdin.buffer.read()
        elif path.is_dir():
            try:
                found = sorted(item for item in path.iterdir() if item.suffix.lower() in SUFFIXES)
            except OSError as error:
                raise PictureInvalid(f"{source} cannot be read: {error.strerror}") from error
            if not found:
                raise PictureInvalid(f"{source} holds no pictures", hint="looked for " + ", ".join(sorted(SUFFIXES)))
            yield from ((str(item), item) for item in found)
        elif path.exists():
            yield source, path
        else:
            known = ", ".join(scan()) or "none"
            raise PictureInvalid(f"there is no picture, folder or bundle {source!r}", hint=f"bundles here: {known}")


def _show(records: list[dict[str, Any]], form: str, labels: tuple[str, ...]) -> None:
    import json

    if form == "json":
        click.echo(json.dumps(records, indent=2, ensure_ascii=False))
    elif form == "jsonl":
        for record in records:
            click.echo(json.dumps(record, ensure_ascii=False))
    elif form == "csv":
        click.echo(_as_csv(records, labels), nl=False)
    else:
        for record in records:
            if "error" not in record:
                click.echo(_line(record))


def _as_csv(records: list[dict[str, Any]], labels: tuple[str, ...]) -> str:
    import csv
    import io

    plain = ["file", "label", "probability", "unsure", "variant", "runtime", "provider"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*plain, *(f"p({label})" for label in labels), "error"])
    for record in records:
        found = record.get("probabilities", {})
        shares = [f"{found[label]:.6f}" if found else "" for label in labels]
        writer.writerow([*(record.get(column, "") for column in plain), *shares, record.get("error", "")])
    return text.getvalue()


def _line(record: dict[str, Any]) -> str:
    ranked = sorted(record["probabilities"].items(), key=lambda item: -item[1])
    others = ", ".join(f"{label} {share:.1%}" for label, share in ranked[1:3])
    unsure = " (unsure)" if record["unsure"] else ""
    where = f"[{record['variant']}, {record['runtime']}, {record['provider']}]"
    return f"{record['file']}: {record['label']}{unsure}  {record['probability']:.1%}   then {others}   {where}"

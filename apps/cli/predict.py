"""`kit predict`."""

from __future__ import annotations

import contextlib
import itertools
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apps.cli import bulk, complete, options
from kit.choices import Provider
from kit.errors import BadInput, KitError, UsageError
from kit.report.words import in_json, plain
from kit.system import plain_json
from kit.system.wording import percent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kit.bulk.stream import Answer, Helpers
    from kit.engine import Engine
    from kit.runtime.base import RunnerOptions
    from kit.tasks.base import Prediction
    from kit.tensors import Signature

_STDIN = "-"
_READY = ".onnx"
_ARRAYS = ".npz"
_SHOWN = 8  # values of an array in a line for people

Item = tuple[str, Any]
Record = dict[str, Any]


@click.command(epilog=options.BUNDLE_HELP)
@click.argument("arguments", nargs=-1, metavar="[BUNDLE] INPUT...", shell_complete=complete.bundles)
@click.option("--text", "texts", multiple=True, help="A text, for a bundle that reads texts; may be repeated.")
@click.option(
    "--variant", shell_complete=complete.variants, help="[default: what kit tune chose here, else the bundle's]"
)
@options.one_provider
@click.option("--threads", type=click.IntRange(1), help="Threads one operator may use.  [default: as tuned, else 1]")
@click.option("--json", "as_json", is_flag=True, help="One JSON list of the answers.")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="One JSON object on each line, as soon as it is known.")
@click.option("--csv", "as_csv", is_flag=True, help="One line each, probabilities in columns.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the answers into this .csv, .jsonl or .parquet, with all cores, or as arrays into this .npz.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes, with -o.  [default: one for each CPU]")
@click.option("--ray", metavar="ADDRESS", help="With -o: the Ray cluster whose nodes answer, or auto.")
@click.option("--strict", is_flag=True, help="With -o: stop at the first item without an answer.")
@click.option(
    "--probabilities/--no-probabilities",
    default=None,
    help="With -o: those of all classes.  [default: of a hundred classes or fewer]",
)
@options.debug
def predict(
    arguments: tuple[str, ...],
    texts: tuple[str, ...],
    variant: str | None,
    provider: Provider | None,
    device_id: int,
    allow_fallback: bool,
    threads: int | None,
    as_json: bool,
    as_jsonl: bool,
    as_csv: bool,
    output: Path | None,
    workers: int | None,
    ray: str | None,
    strict: bool,
    probabilities: bool | None,
) -> int:
    """Answer what the bundle's task reads: pictures and folders of them, texts, rows of a table, or tensors in a .npz.

    The first argument may name a bundle, or a ready model.onnx. - reads stdin. An item that cannot be read is reported, the
    others are still answered, and the exit code is 4. Answers come one by one, from the first item on; pictures that take
    longer than two seconds are answered on all cores. Ctrl-C keeps what was written.

    -o FILE is for many items: they are answered on all cores, and the same command goes on where it was stopped.

    \b
    Examples:
      kit predict photo.jpg
      kit predict mnist-mlp scans/ --csv > answers.csv
      kit predict sentiment --text "a nice film" --text "a boring one"
      kit predict model.onnx inputs.npz -o outputs.npz
      kit predict mnist-mlp scans/ -o answers.parquet
    """
    from kit import engine as engines

    forms = [name for name, chosen in (("json", as_json), ("jsonl", as_jsonl), ("csv", as_csv)) if chosen]
    if len(forms) > 1:
        raise UsageError(f"--{forms[0]} and --{forms[1]} exclude each other")
    in_bulk = output is not None and output.suffix.lower() != _ARRAYS
    only_bulk = {"--workers": workers, "--ray": ray, "--strict": strict or None, "--probabilities": probabilities}
    _check_bulk(output if in_bulk else None, forms, texts, only_bulk)
    bundle, sources = _told_apart(arguments)
    if not sources and not texts:
        named = f" {bundle}" if bundle else ""
        raise UsageError("there is nothing to predict", hint=f"kit predict{named} INPUT, or --text TEXT")
    if provider is None and (device_id or allow_fallback):
        raise UsageError("--device-id and --allow-fallback change nothing on the CPU", hint="add --provider cuda")
    asked = bulk.options_of(provider, device_id, threads, allow_fallback=allow_fallback)
    if in_bulk and output is not None:
        return bulk.run(
            bundle,
            sources,
            output,
            variant=variant,
            options=asked,
            workers=workers,
            ray=ray,
            strict=strict,
            probabilities=probabilities,
        )
    with engines.load(
        bundle,
        variant=variant,
        provider=provider,
        threads=threads,
        device_id=device_id,
        allow_fallback=allow_fallback,
    ) as engine:
        _say_fallback(engine, asked)
        answers = _Answers(keeps=output is not None)
        try:
            with _shown(engine, sources, len(texts)) as tell:
                records = answers.records(engine, _items(engine, sources, texts), _helpers(engine, asked), tell)
                _show(records, forms[0] if forms else "none" if output else "")
        finally:  # Ctrl-C leaves what was answered before
            if output is not None and answers.kept:
                _write(output, answers.kept, engine.signature)
    return BadInput.exit_code if answers.failed else 0


def _check_bulk(
    output: Path | None, forms: Sequence[str], texts: Sequence[str], only_bulk: Mapping[str, object]
) -> None:
    """Refuse what does not go with a file of answers, or only with one."""
    if output is None:
        if alone := next((name for name, value in only_bulk.items() if value is not None), None):
            raise UsageError(f"{alone} is for many items, whose answers go into a file", hint="add -o answers.csv")
        return
    if forms:
        raise UsageError(f"--{forms[0]} is for the screen, and -o says by its ending what is written")
    if texts:
        raise UsageError("--text is for the screen", hint="write the texts into a file: a line each, called .txt")


def _told_apart(arguments: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """Return the bundle, None for the default one, and what to read; raises BadInput if the first word is neither."""
    from kit.bundle import is_bundle, lookup

    if not arguments or arguments[0] == _STDIN:
        return None, arguments
    first = arguments[0]
    if is_bundle(first) or Path(first).suffix.lower() == _READY:
        return first, arguments[1:]
    if not Path(first).exists():
        raise BadInput(f"there is no file, folder or bundle {first!r}", hint=lookup.known())
    return None, arguments


def _items(engine: Engine, sources: Sequence[str], texts: Sequence[str]) -> Iterator[Item]:
    """Give each item with its name, as it is read; in place of what cannot be read, the error."""
    task = engine.task
    if texts and not getattr(task, "takes_text", False):
        raise UsageError(f"the task {task.name} of this bundle reads no texts", hint="leave --text out")
    yield from ((text, text) for text in texts)
    passed_over = getattr(task, "passed_over", None)
    for source in sources:
        try:
            if passed_over and (note := passed_over(source)):
                click.echo(f"{source}: {note}", err=True)
            yield from task.read(source)
        except KitError as error:
            yield source, error


def _say_fallback(engine: Engine, asked: RunnerOptions | None) -> None:
    from kit.bulk import fallback_note

    if asked is not None and (note := fallback_note(engine, asked.provider)):
        click.echo(plain(f"Note: {note}"), err=True)


def _helpers(engine: Engine, asked: RunnerOptions | None) -> Helpers | None:
    """Return what helps with pictures, on the CPU; None for other items, which take less time than to send them."""
    from kit.bulk.answering import Opening
    from kit.bulk.stream import Helpers
    from kit.system.machine import this_machine

    if engine.provider is not Provider.CPU or not getattr(engine.task, "takes_bytes", False):
        return None
    opening = Opening.of_engine(engine, asked)
    count = this_machine().cpus_to_use // opening.options.threads
    return Helpers(opening=opening, count=count) if count > 1 else None


@contextlib.contextmanager
def _shown(engine: Engine, sources: Sequence[str], texts: int) -> Iterator[Callable[[int], None]]:
    """Give what is told of each answer: it shows progress on a terminal that does not show the answers themselves."""
    from apps.cli import render

    if render.stdout().is_terminal or not render.stderr().is_terminal:
        yield lambda _: None
        return
    from kit.bulk.chunks import count

    counted = count(engine.task, sources)
    whole = None if counted is None else counted + texts
    shown = bulk.Shown()
    with render.progress() as update:
        yield lambda done: update(shown.line(done, whole))


class _Answers:
    """Records of answers as they come; `failed`: an item has no answer; `kept`: the predictions, if `keeps`."""

    def __init__(self, *, keeps: bool) -> None:
        self.failed = False
        self.kept: list[Prediction] = []
        self._keeps = keeps

    def records(
        self, engine: Engine, items: Iterator[Item], helpers: Helpers | None, tell: Callable[[int], None]
    ) -> Iterator[Record]:
        """Give a record for each row of each answer; raises the KitError of an only item that has none."""
        from kit.bulk import stream

        with contextlib.closing(stream.answers(engine, items, helpers=helpers)) as found:
            first = next(found, None)
            second = next(found, None) if first is not None and first.problem is not None else None
            if first is not None and first.problem is not None and second is None:
                raise first.problem
            begun = [one for one in (first, second) if one is not None]
            for done, answer in enumerate(itertools.chain(begun, found), start=1):
                yield from self._records(answer)
                tell(done)

    def _records(self, answer: Answer) -> list[Record]:
        from kit.bulk.answering import apart

        prediction = answer.prediction
        if prediction is None:
            self.failed = True
            click.echo(plain(f"Error: {answer.name}: {answer.problem}", lines=True), err=True)
            return [{"file": answer.name, "error": str(answer.problem)}]
        if self._keeps:
            self.kept.append(prediction)
        about = {
            "variant": prediction.variant,
            "runtime": prediction.runtime,
            "provider": prediction.provider.value if prediction.provider else "",
            "latency_us": prediction.latency_us,
        }
        return [
            {"file": answer.name, **{apart(name): value for name, value in record.items()}, **about}
            for record in prediction.records()
        ]


def _show(records: Iterator[Record], form: str) -> None:
    {"json": _as_list, "jsonl": _as_json_lines, "csv": _as_csv, "none": _as_nothing}.get(form, _as_lines)(records)


def _as_list(records: Iterator[Record]) -> None:
    is_first = True
    try:
        for record in records:
            click.echo("[\n" if is_first else ",\n", nl=False)
            click.echo(textwrap.indent(_json(record, indent=2), "  "), nl=False)
            is_first = False
    except KeyboardInterrupt:
        click.echo("[]" if is_first else "\n]")
        raise
    click.echo("[]" if is_first else "\n]")


def _as_json_lines(records: Iterator[Record]) -> None:
    for record in records:
        click.echo(_json(record))


def _as_lines(records: Iterator[Record]) -> None:
    for record in records:
        if "error" not in record:
            click.echo(plain(_line(record)))


def _as_nothing(records: Iterator[Record]) -> None:
    for _ in records:
        pass


def _as_csv(records: Iterator[Record]) -> None:
    """Print a table whose columns are those of the first answer; failures that come before it wait for it."""
    failures: list[Record] = []
    columns: list[str] = []
    for record in records:
        cells = _cells(record)
        if not columns and "error" in record:
            failures.append(cells)
            continue
        if not columns:
            columns = [*cells, "error"]
            click.echo(_csv_lines([dict(zip(columns, columns, strict=True)), *failures], columns), nl=False)
            failures = []
        click.echo(_csv_lines([cells], columns), nl=False)
    if failures:
        columns = ["file", "error"]
        click.echo(_csv_lines([dict(zip(columns, columns, strict=True)), *failures], columns), nl=False)


def _csv_lines(rows: Sequence[Record], columns: Sequence[str]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([row.get(column, "") for column in columns] for row in rows)
    return plain(text.getvalue(), lines=True)


def _cells(record: Record) -> Record:
    """Return a record as cells of a table: probabilities as `p(label)`, lists of numbers as `name[0]`."""
    cells: Record = {}
    wide: Record = {}
    for name, value in record.items():
        if name == "probabilities":
            wide |= {f"p({label})": f"{share:.6f}" for label, share in value.items()}
        elif isinstance(value, list) and value and not isinstance(value[0], list):
            wide |= {f"{name}[{place}]": one for place, one in enumerate(value)}
        elif isinstance(value, list | dict):
            wide[name] = _json(value)
        elif name != "latency_us":
            cells[name] = value
    return {**cells, **wide}


def _line(record: Record) -> str:
    where = f"[{record['variant']}, {record['runtime']}, {record['provider']}]"
    if "probabilities" in record:
        ranked = sorted(record["probabilities"].items(), key=lambda item: -item[1])
        others = ", ".join(f"{label} {percent(share, 1)}" for label, share in ranked[1:3])
        unsure = " (unsure)" if record["unsure"] else ""
        return f"{record['file']}: {record['label']}{unsure}  {percent(record['probability'], 1)}   then {others}   {where}"
    beside = {"file", "variant", "runtime", "provider", "latency_us"}
    parts = "  ".join(f"{name} {_short(value)}" for name, value in record.items() if name not in beside)
    return f"{record['file']}: {parts}   {where}"


def _short(value: Any) -> str:
    if not isinstance(value, list):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    shape: list[int] = []
    inner: Any = value
    while isinstance(inner, list):
        shape.append(len(inner))
        value = inner
        inner = inner[0] if inner else None
    flat = value
    first = ", ".join(_short(one) for one in flat[:_SHOWN])
    return f"{shape} {first}{', ...' if math.prod(shape) > _SHOWN else ''}"


def _json(value: Any, indent: int | None = None) -> str:
    return in_json(plain_json.write(value, indent=indent))


def _rows_at(name: str, prediction: Prediction, signature: Signature) -> int | None:
    """Return the axis of an answer's rows; 0 for what a task makes of outputs, None if it belongs to the whole call."""
    if prediction.arrays()[name] is not prediction.outputs.get(name):
        return 0
    shape = signature.output(name).shape
    return shape.index(signature.batch) if signature.batch in shape else None


def _joined(parts: Sequence[NDArray[Any]], rows: int | None) -> NDArray[Any] | None:
    """Return the answers to several items as one array, stacked if they have no rows of their own; None if sizes differ."""
    import numpy as np

    if len(parts) == 1:
        return parts[0]
    sizes = {part.shape if rows is None else (*part.shape[:rows], *part.shape[rows + 1 :]) for part in parts}
    if len(sizes) > 1:
        return None
    return np.stack(parts) if rows is None else np.concatenate(parts, axis=rows)


def _write(path: Path, predictions: Sequence[Prediction], signature: Signature) -> None:
    """Write answers as arrays: those of all items in one if their shapes allow it, else `NAME.0`, `NAME.1`, ..."""
    import io

    import numpy as np

    from kit.system import files

    arrays: dict[str, NDArray[Any]] = {}
    each = [prediction.arrays() for prediction in predictions]
    for name in each[0]:
        parts = [one[name] for one in each]
        joined = _joined(parts, _rows_at(name, predictions[0], signature))
        arrays |= {name: joined} if joined is not None else {f"{name}.{place}": one for place, one in enumerate(parts)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    files.write(path, buffer.getvalue())
    click.echo(f"{path}: " + ", ".join(f"{name} {list(one.shape)}" for name, one in arrays.items()), err=True)

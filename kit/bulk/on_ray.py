"""Chunks on a Ray cluster: one reader beside the files, and Ray Data with actors that hold an engine each."""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kit import cluster, ready
from kit.bulk.answering import Answered, Answering, Opening
from kit.bulk.chunks import Chunk, Reading, chunks
from kit.bulk.forms import FORMS
from kit.choices import Provider
from kit.errors import BadInput, KitError, Unavailable
from kit.tasks.base import Task
from kit.tasks.inputs import refuse_special
from kit.tasks.registry import task_of

_START_SECONDS = 120


class OnRay:
    """The nodes of a cluster, with `workers` actors; None for one on each free CPU, or GPU.

    Raises:
        PackageMissing, Unavailable, UsageError: As kit.cluster says.
    """

    def __init__(self, opening: Opening, suffix: str, *, address: str, workers: int | None) -> None:
        self._cluster = cluster.connect(address)
        self._opening, self._suffix = opening, suffix
        self._cpus = opening.options.threads
        self._gpus = 0 if opening.options.provider is Provider.CPU else 1
        self.workers = workers or max(1, self._cluster.places(cpus_each=self._cpus, gpus_each=self._gpus))
        self._cluster.check(workers=self.workers, cpus_each=self._cpus, gpus_each=self._gpus)
        self.notes: Sequence[str] = self._cluster.notes()

    def answers(self, reading: Reading) -> Generator[Answered]:
        """Give the answers to each chunk that is left, in order; a task of the cluster reads the sources, on this node.

        Raises:
            Unavailable: The actors did not start.
            KitError: As an actor found it: the bundle, the golden samples.
        """
        import ray.data
        from ray.data import ActorPoolStrategy, DataContext

        package = cluster.ship(ready.find(self._opening.origin))
        context = DataContext.get_current().copy()  # whoever calls this may have pipelines of their own
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        context.execution_options.verbose_progress = False
        context.target_max_block_size = 1  # a chunk is a block: larger ones would wait for each other
        context.wait_for_min_actors_s = _START_SECONDS
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        with DataContext.current(context):
            found = ray.data.read_datasource(
                _chunk_source(self._opening.origin, reading), override_num_blocks=1, num_cpus=0, label_selector=here
            ).map_batches(
                Answers,
                batch_size=None,
                compute=ActorPoolStrategy(size=self.workers, max_tasks_in_flight_per_actor=2),
                fn_constructor_args=(package, self._opening, self._suffix),
                num_cpus=self._cpus,
                num_gpus=self._gpus or None,
            )
        try:
            for row in found.iter_rows():
                answered = pickle.loads(row["answered"])  # noqa: S301 - of this program's own actors
                yield _right(answered)
        except KitError:
            raise
        except Exception as error:  # whatever Ray and its pool raise
            inner = cluster.of_error(error)
            if isinstance(inner, KitError):
                raise inner from error
            said = str(error).strip().splitlines()
            raise Unavailable(
                f"the cluster stopped: {said[-1] if said else type(error).__name__}",
                hint="look at it with `ray status`; the same command goes on where it stopped",
            ) from error


def _right(answered: Answered | KitError) -> Answered:
    if isinstance(answered, KitError):
        raise answered
    return answered


class Answers:
    """What an actor holds: an engine that answers chunks, or why there is none."""

    def __init__(self, package: cluster.Package, opening: Opening, suffix: str) -> None:
        self._answering: Answering | KitError
        try:
            path = cluster.arrive(package)
            self._answering = Answering(replace(opening, origin=str(path)), FORMS[suffix]())
        except KitError as error:  # an actor that does not start is started again for ever
            self._answering = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the answers to the chunks of a batch."""
        return {"answered": [pickle.dumps(self._answered(pickle.loads(one))) for one in batch["chunk"]]}  # noqa: S301

    def _answered(self, chunk: Chunk) -> Answered | KitError:
        if isinstance(self._answering, KitError):
            return self._answering
        try:
            return self._answering.answer(chunk)
        except KitError as error:
            return error


def _chunk_source(origin: str, reading: Reading) -> Any:
    """Return a source of Ray Data: one task that reads all, a chunk at a time."""
    import pyarrow as pa
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    folder, sources, rows, start = Path.cwd(), reading.sources, reading.rows, reading.skipped

    def read() -> Iterator[Any]:
        with contextlib.chdir(folder):  # names are those that were typed
            task = task_of(ready.find(origin))
            for chunk in chunks(task, sources, rows, start=start):
                content = pickle.dumps(_loaded(task, chunk))
                yield pa.table({"chunk": pa.array([content], pa.large_binary())})

    class _Source(Datasource):
        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:  # noqa: ARG002 - Ray's signature
            about = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
            return [ReadTask(read, about)]

        def estimate_inmemory_data_size(self) -> int | None:
            return None

    made: Any = _Source
    return made()


def _loaded(task: Task, chunk: Chunk) -> Chunk:
    """Return a chunk whose files travel with it: other nodes may not have them."""
    if not getattr(task, "takes_bytes", False):
        return chunk
    return replace(chunk, items=tuple(map(_content, chunk.items)))


def _content(item: Any) -> Any:
    if not isinstance(item, str | Path):
        return item
    try:
        refuse_special(Path(item))
        return Path(item).read_bytes()
    except (OSError, BadInput):
        return item  # the task says what is wrong, in the same words as everywhere

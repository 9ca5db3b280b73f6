"""Many items, one file of answers: streaming, on all cores or on a cluster, and going on where it was stopped.

    from kit import bulk

    outcome = bulk.predict("mnist-mlp", ["scans/"], Path("answers.parquet"))
    outcome.answered, outcome.refused

Who calls whom: `predict` takes items from kit.bulk.chunks, a chunk at a time, gives them to a crew (kit.bulk.crew: this process,
or several; kit.bulk.on_ray: a cluster) in which kit.bulk.answering holds an engine each, and writes what comes back, in order,
into kit.bulk.output.
"""

from __future__ import annotations

from kit.bulk.run import Outcome, predict

__all__ = ["Outcome", "predict"]

"""Many items, one file of answers: streaming, on all cores or on a cluster, and going on where it was stopped.

    from kit import bulk

    outcome = bulk.predict("mnist-mlp", ["scans/"], Path("answers.parquet"))
    outcome.rows, outcome.refused

Items are read in chunks, answered by a crew (this process, several, or the nodes of a cluster), each worker with an engine of
its own, and written in their order.
"""

from __future__ import annotations

from kit.bulk.run import Outcome, fallback_note, predict

__all__ = ["Outcome", "fallback_note", "predict"]

"""What `kit demo` was told, as it reaches the server and the page: in the arguments of their process."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

THIS_MACHINE = ("localhost", "127.0.0.1", "[::1]")
"""Names under which a browser on this machine may ask."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was told.

    Attributes:
        bundle: The one in sight at first: a name, or the path of a folder, a packed file or a ready model.
        artifacts_only: Open no path of this machine but those of `./artifacts`, of kit's own bundles and of `bundle`.
        allowed_hosts: Names beside `THIS_MACHINE` under which the page may be asked for.
    """

    bundle: str = "mnist-mlp"
    artifacts_only: bool = False
    port: int = 8501
    allowed_hosts: tuple[str, ...] = ()
    open_browser: bool = False

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Settings:
        """Read them from a command line, such as `--artifacts-only mnist-mlp`; ends the process if it is none."""
        parser = argparse.ArgumentParser(prog="apps.demo.serve", allow_abbrev=False)
        parser.add_argument("bundle", nargs="?", default=cls.bundle)
        parser.add_argument("--artifacts-only", action="store_true")
        parser.add_argument("--port", type=int, default=cls.port)
        parser.add_argument("--allow-host", dest="allowed_hosts", action="append", default=[])
        parser.add_argument("--open-browser", action="store_true")
        found = vars(parser.parse_args(arguments))
        return cls(**{**found, "allowed_hosts": tuple(found["allowed_hosts"])})

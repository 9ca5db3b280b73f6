"""What a bundle or a ready model is, found out by a process that may come to harm, for the page that must not.

A ready model is run to find out what it takes, and a stranger's manifest may be anything: `describe` is a task of a worker,
and `described` makes of its answer what the page draws.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from apps.demo.samples import bundle_of
from apps.demo.worker import Answer, Job
from kit import ready
from kit.bundle import Bundle, Manifest
from kit.bundle.manifest import MANIFEST
from kit.bundle.read import manifest_from_bytes
from kit.errors import BundleInvalid
from kit.ready import ReadyModel
from kit.system import serial

MOST_MANIFEST_BYTES = 2 * 2**20
"""Of a stranger's bundle: the page draws all of it."""


def describe(job: Job) -> Answer:
    """Say what a bundle or a ready model is. Asked: `path`.

    Returns `manifest`, plain JSON values; the arrays are the attachments that an earlier manifest holds itself, uint8 `[n]`.
    """
    bundle = bundle_of(job)
    bundle.variant()  # without one there is nothing to show
    manifest = serial.encode(bundle.manifest)
    size = len(json.dumps(manifest))
    if size > MOST_MANIFEST_BYTES:
        raise BundleInvalid(f"the manifest of {bundle.name} has {size:,} bytes, too many for a page")
    return Answer({"manifest": manifest}, {role: np.frombuffer(data, np.uint8) for role, data in bundle.inline.items()})


def described(place: Path, answer: Answer) -> Bundle:
    """Return the bundle or ready model at `place` that `describe` described; none of its files is read.

    Raises:
        BundleInvalid: The answer describes none, or names files elsewhere: a stranger's model may have made it.
    """
    plain = answer.told.get("manifest")
    if not ready.is_ready(place):
        manifest, _ = manifest_from_bytes(json.dumps(plain).encode(), place / MANIFEST, hint="")
        return Bundle(place, manifest, inline={role: array.tobytes() for role, array in answer.arrays.items()})
    try:
        found = serial.decode(Manifest, plain)
    except serial.DecodeError as error:
        raise BundleInvalid(f"{place.name} is no model that kit knows: {error}") from error
    if [one.graph.file for one in found.variants] != [place.name]:
        raise BundleInvalid(f"{place.name} is no model that kit knows")
    return ReadyModel(place.parent, found)

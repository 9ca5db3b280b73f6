"""What verifying found, as tables."""

from __future__ import annotations

from rich.text import Text

from apps.cli import figures
from apps.cli.lines import say
from apps.cli.render import stdout
from apps.cli.tables import Rows, styled
from kit.metrics import Fidelity, FidelityVerdict
from kit.report.format import score, value
from kit.runtime.registry import DEFAULT
from kit.system.wording import counted
from kit.tensors import Sizes
from kit.verify import ModelCheck, PairCheck, Verification
from kit.verify.bundle import VariantCheck
from kit.verify.model import ROWS_RTOL, RuntimeCheck

_LONG = 240  # characters of a runtime's own message

_PASS, _FAIL, _NOT_RUN = styled("PASS", "green"), styled("FAIL", "red"), styled("NOT RUN", "yellow")


def verify_table(result: Verification) -> None:
    """Print files, the way in, each variant's fidelity and the verdicts."""
    console = stdout()
    for check in result.files:
        problem = f": {check.problem}" if check.problem else ""
        say(console, Text.assemble(_mark(check.ok), f" {check.file}{problem}"))
    way_in = result.way_in
    if way_in is not None and not way_in.unavailable:
        said = f" {way_in.items} raw items become the tensors they should"
        say(console, Text.assemble(_mark(way_in.ok), said))
        for problem in way_in.problems:
            say(console, f"     {problem}")
    if result.original is not None:
        error = max((one.max_rel_error or 0.0 for one in result.original.fidelity), default=0.0)
        said = f" {result.original.name} answers here as it did then (relative error {error:.2g})"
        say(console, Text.assemble(_mark(result.original.ok), said))
    if result.variants:
        _variants(result)
        say(
            console,
            f"{counted(result.samples, 'golden sample')} ({result.golden_source or 'source unknown'}), against "
            f"{result.reference}.",
        )
        say(
            console,
            "Tolerance and needed: relative error for fp32 and fp16; for integers rms error, up to 1.5 times that at export.",
        )
        _explain_metric(result)
    for problem, names in _problems(result).items():
        say(console, styled(f"{names}: {problem}", "yellow"))
    for remark in result.remarks:
        say(console, styled(remark, "yellow"))


def _explain_metric(result: Verification) -> None:
    row = next((one for one in result.variants if one.figure is not None), None)
    if row is None or row.figure is None:
        return
    one, published = row.figure, row.figure.published
    right = value(one.value, one.unit)
    if one.unit == "%":
        right = f"{round(one.value * one.samples):,} of {counted(one.samples, 'golden sample')} right"
    said = f"{one.metric} of {row.variant} here: {right}. Golden samples prove that answers are the same as the original's."
    if published is not None:
        where = f"{published.dataset} {published.split}, {counted(published.samples, 'sample')}"
        said += f" How right it is was counted on {where}: {score(published)}."
    say(stdout(), said)


def _problems(result: Verification) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for row in result.variants:
        if row.problem:
            found.setdefault(row.problem, []).append(f"{row.variant} in {row.runtime}")
    return {problem: ", ".join(names) for problem, names in found.items()}


def _variants(result: Verification) -> None:
    names_runtime = {row.runtime for row in result.variants} != {DEFAULT}
    several_outputs = any(len(row.fidelity) > 1 for row in result.variants)
    figure = next((row.figure for row in result.variants if row.figure), None)
    rows = Rows(
        headers=(
            *("variant", "nodes on", "output", "max rel err", "cosine", "agrees", "needed", "tolerance"),
            f"{figure.metric} (original)" if figure else "metric",
            "verdict",
        ),
        left=("variant", "nodes on", "output", "verdict"),
        spare=("cosine", "agrees"),
        needed=("max rel err", "nodes on"),
    )
    for row in result.variants:
        name = f"{row.variant} in {row.runtime}" if names_runtime else row.variant
        if row.verdict is None:
            rows.add(name, f"{row.provider}: not run", *[""] * 7, _NOT_RUN)
            continue
        for number, found in enumerate(row.fidelity or (None,)):
            first = number == 0
            rows.add(
                name if first else "",
                row.placement if first else "",
                found.output if found and several_outputs else "",
                *(_errors(found) if found else ("", "", "")),
                *(_bar(row.verdict) if first else ("", "")),
                _figure(row) if first else "",
                (_PASS if row.ok else _FAIL) if first else "",
            )
    rows.show(stdout())


def _errors(found: Fidelity) -> tuple[str, str, str]:
    return figures.relative(found), figures.cosine(found), figures.share(found.agreement)


def _bar(verdict: FidelityVerdict) -> tuple[str, str]:
    return f"{verdict.needed:.2g}", f"{verdict.tolerance:.2g}"


def _figure(row: VariantCheck) -> str:
    one = row.figure
    return "" if one is None else f"{value(one.value, one.unit)} ({value(one.original, one.unit)})"


def model_table(result: ModelCheck) -> None:
    """Print at which sizes a ready model runs, in which runtimes."""
    rows = Rows(
        headers=("runtime", "nodes on", "sizes", "rows", "max rel err", "verdict"),
        left=("runtime", "nodes on", "sizes", "rows", "verdict"),
        wraps=("sizes", "rows"),
    )
    console = stdout()
    for one in result.runtimes:
        if not one.sizes:
            rows.add(one.runtime, f"{one.provider}: not run", "", "", "", _NOT_RUN)
            continue
        ran = _ran_at(one)
        rows.add(one.runtime, one.placement, ran, _rows_in_words(one), _agrees(one), _PASS if one.ok else _FAIL)
    rows.show(console)
    for one in result.runtimes:
        if one.problem:
            say(console, styled(f"{one.runtime}: {one.problem}", "yellow"))
        if text := _did_not_run(one):
            say(console, styled(f"{one.runtime}: {text}", "yellow"))
        broken = sorted({name for size in one.sizes for name in size.not_a_number})
        if broken:
            said = f"{one.runtime}: values of {', '.join(broken)} are no numbers, and the original's are"
            say(console, styled(said, "yellow"))
    rows_said = "" if result.batch else " It has no batch axis, or its rows depend on each other: one call, one answer."
    say(
        console,
        f"Errors: against ONNX Runtime's own answers with optimizations off, {counted(result.samples, 'sample')} "
        f"({result.source}).{rows_said} Not known: what it is for, how right it is.",
    )


def pair_table(result: PairCheck) -> None:
    """Print how two models' outputs differ."""
    rows = Rows(
        headers=("output", "max abs err", "max rel err", "rms err", "cosine", "agrees"),
        left=("output",),
    )
    for one in result.fidelity:
        rows.add(
            one.output,
            f"{one.max_abs_error:.3g}",
            f"{one.max_rel_error or 0.0:.3g}",
            f"{one.rms_error:.3g}",
            *_errors(one)[1:],
        )
    console = stdout()
    rows.show(console)
    sizes = " and ".join(sizes_in_words(one) for one in result.sizes)
    pair = f"{result.bundle} ({result.variant}) against {result.against} ({result.against_variant})"
    bar = f"Relative error needed {result.verdict.needed:.2g}, allowed {result.verdict.tolerance:.2g}."
    say(console, f"{pair}, {result.source or 'given samples'} at {sizes}. {bar}")
    for names, whose in ((result.only_here, result.bundle), (result.only_there, result.against)):
        if names:
            say(console, styled(f"only {whose} has: {', '.join(names)}", "yellow"))


def sizes_in_words(sizes: Sizes) -> str:
    """Return `batch 8, sequence 16`, or `its fixed size`."""
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "its fixed size"


def _ran_at(one: RuntimeCheck) -> str:
    """Return the sizes of each axis that it ran at: `batch 1, 2, 3; sequence 16, 32`."""
    sizes: dict[str, set[int]] = {}
    for size in one.sizes:
        if not size.problem:
            for name, number in size.sizes.items():
                sizes.setdefault(name, set()).add(number)
    ran = "; ".join(f"{name} {', '.join(map(str, sorted(numbers)))}" for name, numbers in sizes.items())
    return ran or ("its fixed size" if any(not size.problem for size in one.sizes) else "none")


def _did_not_run(one: RuntimeCheck) -> str:
    """Return at which sizes it did not run, by axis, and why at the first of them: empty if it ran at all of them."""
    failed = [size for size in one.sizes if size.problem]
    if not failed:
        return ""
    usual = one.sizes[0].sizes
    moved: dict[str, list[str]] = {}
    for size in failed:
        for name, number in size.sizes.items():
            if number != usual[name]:
                moved.setdefault(name, []).append(str(number))
    where = "; ".join(f"{name} {', '.join(numbers)}" for name, numbers in moved.items()) or sizes_in_words(usual)
    reason = failed[0].problem
    short = reason if len(reason) <= _LONG else f"{reason[:_LONG].rsplit(' ', 1)[0]} ..."
    return f"does not run at {where}: {short}"


def _rows_in_words(one: RuntimeCheck) -> str:
    if one.rows_error is None:
        return ""
    if one.rows_error > ROWS_RTOL:
        return f"depend on each other ({one.rows_error:.2g})"
    return "independent" if one.rows_error < 1e-3 else f"move by {one.rows_error:.2g}"


def _agrees(one: RuntimeCheck) -> str:
    return "" if not one.fidelity else f"{max(found.max_rel_error or 0.0 for found in one.fidelity):.2g}"


def _mark(ok: bool) -> Text:
    return styled("ok  ", "green") if ok else styled("BAD ", "red")

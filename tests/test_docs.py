"""The pages: their links, their place in the README, and its size."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import ROOT

PAGES = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "artifacts" / "README.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_links_lead_to_a_file_and_a_heading_that_there_are() -> None:
    broken = []
    for page in PAGES:
        for target in LINK.findall(_without_code(page)):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            if not path.exists() or (anchor and anchor not in _anchors(path)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    pages = {page.name for page in ROOT.glob("docs/*.md")} - {"index.md"}  # the home of the site
    assert not [name for name in sorted(pages) if f"(docs/{name}" not in readme]


def test_the_readme_can_be_read_at_once() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130
    assert max(len(line) for line in lines) <= 160


def test_the_readmes_speeds_are_those_of_the_table_of_networks() -> None:
    rows = re.findall(r"^\| .*x \|.*$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    head, *networks = re.split(r"^## ", (ROOT / "docs" / "int8_networks.md").read_text(), flags=re.MULTILINE)
    parts = {part.partition(",")[0].partition(" (")[0]: part for part in networks} | {"ten networks": head}
    assert "Networks: 10;" in head
    assert rows
    for row in rows:
        name = row.removeprefix("| ").partition(",")[0]
        assert not [speed for speed in re.findall(r"\d+\.\d\dx", row) if speed not in parts[name]], row


def _without_code(page: Path) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them of plain words."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}

"""What is written from the code: the reference is the newest, the manual pages are well-formed, shells can complete."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from machine import REPOSITORY

PROGRAM = REPOSITORY / "packaging/documents.py"


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("share")
    subprocess.run([sys.executable, PROGRAM, "install", target], check=True)
    return target


def test_the_reference_is_that_of_this_code() -> None:
    """`make reference` writes it."""
    done = subprocess.run([sys.executable, PROGRAM, "reference"], check=True, capture_output=True, text=True)
    assert (REPOSITORY / "docs/reference.md").read_text() == done.stdout


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall("^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_of_installed_documents_lead_somewhere(share: Path) -> None:
    """So those of the repository do, too: it is the same tree."""
    pages = sorted((share / "doc/dnat").rglob("*.md"))
    assert len(pages) > 15
    for page in pages:
        text = re.sub("^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for path, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)]*)\)", text):
            if "://" in path:
                continue
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {path}"
            assert not anchor or anchor in _anchors(target), f"{page.name}: {path}#{anchor}"


@pytest.mark.skipif(shutil.which("man") is None, reason="man-db is not installed")
def test_manual_pages_are_well_formed(share: Path) -> None:
    pages = sorted((share / "man").rglob("*.[15]"))
    assert {"dnatctl.1", "dnatctl-lab-up.1", "dnat.toml.5"} <= {page.name for page in pages}
    for page in pages:
        done = subprocess.run(
            ["man", "--warnings", "-E", "UTF-8", "-l", page], check=True, capture_output=True, text=True
        )
        assert done.stderr == "", page.name
        assert "SYNOPSIS" in done.stdout or page.suffix == ".5"


@pytest.mark.parametrize(
    ("words", "expected"),
    [("sho", "show"), ("show --wat", "--watch"), ("show -o j", "json"), ("key rev", "revoke"), ("capture -i l", "lo")],
)
def test_bash_completes(share: Path, words: str, expected: str) -> None:
    script = share / "bash-completion/completions/dnatctl"
    subprocess.run(["bash", "-n", script], check=True)
    ask = (
        f"source {script}; COMP_WORDS=(dnatctl {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1));"
        " _dnatctl_completion dnatctl; echo ${COMPREPLY[@]}"
    )
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(["bash", "-c", ask], check=True, capture_output=True, text=True, env={"PATH": path})
    assert expected in done.stdout.split()

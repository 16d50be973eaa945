"""Prints the Python packages to carry along: what pyproject.toml needs and the distribution's packages do not give."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

FROM_DISTRIBUTION = {"cryptography"}
"""Named in the Depends of deb/control instead."""

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    if re.split(r"[<>=~! ]", requirement)[0] not in FROM_DISTRIBUTION:
        print(requirement)

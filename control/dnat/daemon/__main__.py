"""``python -m dnat.daemon``: what ``dnatctl up`` starts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dnat.config import load
from dnat.daemon.main import run

parser = argparse.ArgumentParser(prog="dnatd")
parser.add_argument("--config", type=Path)
parser.add_argument("--ready-fd", type=int)
options = parser.parse_args()
sys.exit(run(load(options.config), options.ready_fd))

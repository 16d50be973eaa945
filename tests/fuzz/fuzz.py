"""``make fuzz``: Atheris looks for octets that a reader does not survive, and keeps those that led it anywhere new.

``python fuzz.py TARGET SECONDS CORPUS [OPTION...]``. What a reader does not survive is written to the current
directory, and belongs into the corpus.
"""

from __future__ import annotations

import logging
import sys

import atheris

with atheris.instrument_imports(include=["dnat", "sipmessage"]):
    from targets import TARGETS


def main() -> None:
    name, seconds, *rest = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    feed = TARGETS[name].feed
    options = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", f"-artifact_prefix=found-{name}-"]
    options += ["-print_final_stats=0", "-verbosity=1"]
    atheris.Setup([sys.argv[0], *options, *rest], lambda octets: feed(bytes(octets)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""``dnatctl lab demo``: real phones behind one address make real calls, checked on the wire."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from dnat.lab import control
from dnat.lab.demo_report import print_report, write_pictures
from dnat.lab.demo_stage import perform, prepared
from dnat.lab.topology import Topology
from dnat.system import netns


def run_demo(topology: Topology, output: Path, console: Console) -> bool:
    """Bring the lab up unless it is, make all calls, say what came of it; whether all of it worked.

    Pictures, captures, recordings and the phones' logs go to ``output``. Raises DnatError when the lab, a
    phone or a capture fails altogether: the message names the log.
    """
    netns.require_root()
    # Phones run in directories of their own.
    output = output.absolute()
    with console.status("starting the lab …") as status:

        def say(step: str) -> None:
            if console.is_terminal:
                status.update(step)
            else:
                console.print(step)

        control.up(topology, say)
        say("leasing ports for the phones …")
        with prepared(topology, output) as stage:
            result = perform(stage, output, say)
        pictures = write_pictures(result, output)
    print_report(result, pictures, output, console)
    return not result.problems

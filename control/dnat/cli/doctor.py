"""``dnatctl doctor``: what stands in the way on this machine, and what to do about it."""

from __future__ import annotations

import json
import sys

import click

from dnat.cli.console import coloured, output_option
from dnat.instance import Instance

_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


@click.command()
@output_option
def doctor(output: str) -> None:
    """Examine this machine, and say what to do about each finding.

    Looks at kernel, BPF, network, firewalls, server, ports and clock. Changes nothing. Exit code 0: all is well, or
    there are warnings only; 1: something does not work.

    \b
    Examples:  sudo dnatctl doctor
               sudo dnatctl doctor -o json | jq '.findings[] | select(.level != "ok")'
    """
    from dnat.doctor.run import examine

    findings = []
    for finding in examine(Instance.current()):
        findings.append(finding)
        if output == "table":
            mark, colour = _MARKS[finding.level]
            click.secho(mark, fg=colour, nl=False, color=coloured(sys.stdout))
            click.echo(f" {finding.check:<13} {finding.text}")
            if finding.advice:
                click.echo(f"  {'':<13} → {finding.advice}")
    failed = any(finding.level == "fail" for finding in findings)
    if output == "json":
        click.echo(json.dumps({"ok": not failed, "findings": [f.document() for f in findings]}, indent=2))
    sys.exit(1 if failed else 0)

"""Writes what can be said from the code alone, and puts documents where they are read.

documents.py reference              docs/reference.md on standard output
documents.py install SHARE          documents, manual pages and completions below SHARE
"""

from __future__ import annotations

import ast
import inspect
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import msgspec

from dnat import __version__, config
from dnat.cli import dnatctl

WIDTH = 100
EXIT_CODES = (
    (0, "it worked"),
    (1, "the answer is no (`doctor` found a fault, `ping` got no answer), or an error without a code of its own"),
    (2, "wrong use: an option, a name, a number, the configuration"),
    (3, "the other side of PAP refused or did not answer"),
    (4, "the machine cannot do it: no root, no BPF, no such interface, a full disk"),
    (5, "dnat is not up here"),
    (70, "an error of dnat itself; DNAT_DEBUG=1 shows where"),
    (130, "interrupted"),
    (141, "whoever read the output went away, as `head` does"),
)
DOCUMENTS = ("README.md", "CHANGELOG.md", "docs/*.md", "docs/*.svg", "docs/*.json", "ebpf/README.md")
FILES = (
    ("/etc/dnat/dnat.toml", "configuration"),
    ("/etc/netns/NAME/dnat/dnat.toml", "configuration in the network namespace NAME"),
    ("/run/dnat/INSTANCE/", "socket, journal of changes, log; gone after a reboot"),
    ("/var/lib/dnat/INSTANCE/", "leases and keys"),
)
ENVIRONMENT = (
    ("DNAT_CONFIG", "configuration file to use"),
    ("NO_COLOR", "set to anything: no colours, as a pipe has none anyway"),
    ("DNAT_DEBUG", "set to anything: errors of dnat itself come with a traceback"),
)


@dataclass(frozen=True)
class Command:
    """One command, as its --help tells it."""

    name: str
    """With all that goes before it: ``dnatctl lab up``."""
    usage: str
    summary: str
    text: tuple[tuple[bool, str], ...]
    """Paragraphs; True where line breaks and spaces count."""
    options: tuple[tuple[str, str], ...]
    is_group: bool


@dataclass(frozen=True)
class Key:
    """One key of the configuration."""

    table: str
    name: str
    default: str
    allowed: str
    meaning: str


def commands(command: click.Command = dnatctl, parent: click.Context | None = None) -> Iterator[Command]:
    """Every command, in the order in which --help lists them."""
    name = "dnatctl" if parent is None else command.name
    context = click.Context(command, parent, info_name=name, max_content_width=WIDTH)
    options = [record for parameter in command.params if (record := parameter.get_help_record(context))]
    yield Command(
        context.command_path,
        " ".join([context.command_path, *command.collect_usage_pieces(context)]),
        command.get_short_help_str(WIDTH),
        tuple(_paragraphs(command.help or "")),
        tuple((declaration, _plain(help_text)) for declaration, help_text in options),
        isinstance(command, click.Group),
    )
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from commands(child, context)


def keys() -> Iterator[Key]:
    """Every key of the configuration, table by table."""
    yield from _keys("", config.Config)


def _keys(table: str, struct: type[msgspec.Struct]) -> Iterator[Key]:
    hints = get_type_hints(struct, include_extras=True)
    said = _docstrings(struct)
    tables = []
    for field in msgspec.structs.fields(struct):
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if isinstance(default, msgspec.Struct):
            tables.append((f"{table}.{field.name}".lstrip("."), type(default)))
            continue
        shown = "" if default in (None, [], {}, msgspec.NODEFAULT) else msgspec.json.encode(default).decode()
        yield Key(table, field.name, shown, _description(hints[field.name]), said.get(field.name, ""))
    for name, inner in tables:
        yield from _keys(name, inner)


def _description(hint: Any) -> str:
    for part in (hint, *get_args(hint)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.description:
                return meta.description
    return ""


def _docstrings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The sentence beneath each field, which Python itself does not keep."""
    source = Path(str(import_module(struct.__module__).__file__)).read_text()
    (body,) = (n.body for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef) and n.name == struct.__name__)
    found = {}
    for one, following in itertools.pairwise(body):
        if isinstance(one, ast.AnnAssign) and isinstance(following, ast.Expr) and isinstance(one.target, ast.Name):
            found[one.target.id] = " ".join(str(ast.literal_eval(following.value)).split()).replace("``", "`")
    return found


def _paragraphs(text: str) -> Iterator[tuple[bool, str]]:
    for part in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if part.startswith("\b"):
            yield True, part.lstrip("\b\n").rstrip()
        elif part.strip():
            yield False, " ".join(part.split())


def _plain(text: str) -> str:
    return " ".join(text.split())


def reference() -> str:
    """docs/reference.md."""
    lines = ["# Reference", "", "Written from the code by `make reference`; do not edit.", "", "## Commands", ""]
    for command in commands():
        lines += [f"### `{command.name}`", "", "```", command.usage, "```", ""]
        for literal, text in command.text:
            lines += ["```", text, "```", ""] if literal else [text, ""]
        if command.options:
            lines += ["| option | meaning |", "| --- | --- |"]
            lines += [f"| `{_cell(declaration)}` | {_cell(text)} |" for declaration, text in command.options]
            lines.append("")
    lines += ["## Exit codes", "", "| code | meaning |", "| --- | --- |"]
    lines += [f"| {code} | {text} |" for code, text in EXIT_CODES]
    lines += ["", "## Environment", "", "| variable | meaning |", "| --- | --- |"]
    lines += [f"| `{name}` | {text} |" for name, text in ENVIRONMENT]
    lines += ["", "## Files", "", "| path | what |", "| --- | --- |"]
    lines += [f"| `{name}` | {text} |" for name, text in FILES]
    lines += ["", "## Configuration", "", "`/etc/dnat/dnat.toml`; more in [configuration.md](configuration.md).", ""]
    table = None
    for key in keys():
        if key.table != table:
            table = key.table
            lines += ["", f"### {f'`[{table}]`' if table else 'Top of the file'}", ""]
            lines += ["| key | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        default = f"`{key.default}`" if key.default else "–"
        lines.append(f"| `{key.name}` | {default} | {_cell(key.allowed)} | {_cell(key.meaning)} |")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def manual_pages() -> Iterator[tuple[str, str]]:
    """File name and text of each page: dnatctl(1), one per command, dnat.toml(5)."""
    every = list(commands())
    for command in every:
        name = command.name.replace(" ", "-")
        others = [c.name.replace(" ", "-") for c in every if c.name.rpartition(" ")[0] == command.name]
        others += [command.name.rpartition(" ")[0].replace(" ", "-")] if " " in command.name else []
        yield f"man1/{name}.1", "\n".join(_manual_page(command, name, others))
    yield "man5/dnat.toml.5", "\n".join(_configuration_page())


def _manual_page(command: Command, name: str, others: list[str]) -> Iterator[str]:
    yield from _head(name, 1, command.summary)
    yield from (".SH SYNOPSIS", ".nf", _roff(command.usage), ".fi", ".SH DESCRIPTION")
    for literal, text in command.text:
        yield from (".PP", ".nf", _roff(text), ".fi") if literal else (".PP", _roff(text))
    if command.options:
        yield ".SH OPTIONS"
        for declaration, text in command.options:
            yield from (".TP", f"\\fB{_roff(declaration)}\\fR", _roff(text))
    if command.is_group and command.name == "dnatctl":
        for title, rows in (("EXIT STATUS", EXIT_CODES), ("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)):
            yield f".SH {title}"
            for term, text in rows:
                yield from (".TP", f"\\fB{_roff(str(term))}\\fR", _roff(text))
    yield ".SH SEE ALSO"
    yield ",\n".join([f"\\fB{_roff(other)}\\fR(1)" for other in others] + [r"\fBdnat.toml\fR(5)"])
    yield ""


def _configuration_page() -> Iterator[str]:
    yield from _head("dnat.toml", 5, "configuration of dnat")
    yield from (".SH DESCRIPTION", "A TOML file; \\fB/etc/dnat/dnat.toml\\fR, or in a named network namespace")
    yield "\\fB/etc/netns/NAME/dnat/dnat.toml\\fR. It is checked whole before anything is touched."
    table = None
    for key in keys():
        if key.table != table:
            table = key.table
            yield f".SH {'TOP OF THE FILE' if not table else _roff(f'[{table}]')}"
        yield from (".TP", f"\\fB{_roff(key.name)}\\fR")
        parts = [key.meaning]
        parts += [f"{title}: {text}." for title, text in (("Allowed", key.allowed), ("Default", key.default)) if text]
        yield _roff(" ".join(part for part in parts if part))
    yield from (".SH SEE ALSO", "\\fBdnatctl\\fR(1)", "")


def _head(name: str, section: int, summary: str) -> Iterator[str]:
    yield f'.TH "{name.upper()}" "{section}" "" "dnat {__version__}" "dnat"'
    yield from (".SH NAME", f"{_roff(name)} \\- {_roff(summary.rstrip('.'))}")


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text)
    return re.sub(r"(?m)^([.'])", r"\\&\1", text)


COMPLETIONS = {
    "bash": "bash-completion/completions/dnatctl",
    "zsh": "zsh/vendor-completions/_dnatctl",
    "fish": "fish/vendor_completions.d/dnatctl.fish",
}


def completion(shell: str) -> str:
    """The script that makes a shell ask ``dnatctl`` what may follow."""
    environment = {**os.environ, "_DNATCTL_COMPLETE": f"{shell}_source"}
    program = "import sys; sys.argv[0] = 'dnatctl'; from dnat.cli import main; main()"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def install(share: Path) -> None:
    """Write documents, manual pages and completions below ``share``."""
    root = Path(__file__).parents[1]
    for pattern in DOCUMENTS:
        for document in root.glob(pattern):
            # In the same tree, so that their links lead somewhere.
            target = share / "doc/dnat" / document.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(document.read_bytes())
    files = {f"man/{name}": text for name, text in manual_pages()}
    files |= {path: completion(shell) for shell, path in COMPLETIONS.items()}
    for name, text in files.items():
        path = share / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["reference"]:
            sys.stdout.write(reference())
        case ["install", share]:
            install(Path(share))
        case _:
            sys.exit(__doc__)

"""A question to a combination address from outside, and a program that answers it.

The probe is a UDP datagram or a TCP connection that carries ``dnat-ping NONCE``; the answer is
``dnat-pong NONCE ADDRESS:PORT``, with the address and port that the question came from. Where no answerer
runs, a connection that is accepted or refused, an ICMP error, or a SIP answer to OPTIONS says as much:
the packets found the host that owns the port.
"""

from __future__ import annotations

import contextlib
import secrets
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["udp", "tcp", "sip", "sip-tcp", "sip-tls"]
Outcome = Literal["answered", "open", "refused", "unreachable", "silence"]

REACHED: frozenset[Outcome] = frozenset(("answered", "open", "refused"))
"""Outcomes that prove that the host was reached."""

_QUESTION, _ANSWER = b"dnat-ping ", b"dnat-pong "
_LONGEST = 2000
_VIA: dict[Kind, str] = {"sip": "UDP", "sip-tcp": "TCP", "sip-tls": "TLS"}


@dataclass(frozen=True, slots=True)
class Echo:
    """How one probe ended."""

    outcome: Outcome
    milliseconds: float
    seen_as: str | None = None
    """Our address and port as the answerer saw them."""
    text: str = ""
    """First line of a SIP answer, or the error."""


def ask(address: str, port: int, kind: Kind, seconds: float) -> Echo:
    """Send one probe and wait for what comes back."""
    start = time.monotonic()
    nonce = secrets.token_hex(8)
    datagrams = kind in ("udp", "sip")
    stream = socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM
    with contextlib.ExitStack() as stack:
        asking = stack.enter_context(socket.socket(socket.AF_INET, stream))
        asking.settimeout(seconds)
        connected = False
        try:
            asking.connect((address, port))
            connected = not datagrams
            if kind == "sip-tls":
                asking = stack.enter_context(_secured(asking))
            asking.sendall(_options(asking, address, port, nonce, kind) if kind in _VIA else _QUESTION + nonce.encode())
            answer = asking.recv(_LONGEST)
        except TimeoutError:
            return Echo("open" if connected else "silence", _since(start))
        except ConnectionRefusedError:
            return Echo("refused", _since(start))
        except OSError as error:
            return Echo("open" if connected else "unreachable", _since(start), text=error.strerror or "")
    words = answer.split()
    if answer.startswith(_ANSWER) and len(words) == 3 and words[1].decode(errors="replace") == nonce:
        return Echo("answered", _since(start), seen_as=words[2].decode(errors="replace"))
    if connected and not answer.startswith(b"SIP/2.0 "):
        return Echo("open", _since(start))
    first = answer.split(b"\r\n")[0][:80].decode(errors="replace")
    return Echo("answered", _since(start), text=first)


def answer(address: str, port: int, heard: Callable[[str], None], seconds: float | None = None) -> int:
    """Answer probes on UDP and TCP until ``seconds`` have passed; returns how many. Raises OSError."""
    answered = 0
    end = None if seconds is None else time.monotonic() + seconds
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.create_server((address, port)) as tcp,
        selectors.DefaultSelector() as selector,
    ):
        udp.bind((address, port))
        for one in (udp, tcp):
            selector.register(one, selectors.EVENT_READ)
        while end is None or time.monotonic() < end:
            for key, _ in selector.select(None if end is None else max(0.0, end - time.monotonic())):
                sender = _answer_datagram(udp) if key.fileobj is udp else _answer_connection(tcp)
                if sender is not None:
                    answered += 1
                    heard(sender)
    return answered


def _answer_datagram(udp: socket.socket) -> str | None:
    question, (host, port, *_) = udp.recvfrom(_LONGEST)
    if (reply := _reply(question, f"{host}:{port}")) is None:
        return None
    udp.sendto(reply, (host, port))
    return f"{host}:{port}, UDP"


def _answer_connection(tcp: socket.socket) -> str | None:
    connection, (host, port, *_) = tcp.accept()
    with connection:
        connection.settimeout(1)
        try:
            if (reply := _reply(connection.recv(_LONGEST), f"{host}:{port}")) is None:
                return None
            connection.sendall(reply)
        except OSError:
            return None
    return f"{host}:{port}, TCP"


def _reply(question: bytes, sender: str) -> bytes | None:
    # Shorter than twice the question: nobody's victim is flooded by way of us.
    if not question.startswith(_QUESTION) or len(question) > 64:
        return None
    return _ANSWER + question[len(_QUESTION) :] + b" " + sender.encode()


def _secured(connected: socket.socket) -> socket.socket:
    """Whose certificate it is does not matter: whether there is an answer is asked."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(connected)


def _options(asking: socket.socket, address: str, port: int, nonce: str, kind: Kind) -> bytes:
    """A SIP OPTIONS request (RFC 3261, 11)."""
    host, own = asking.getsockname()
    lines = [
        f"OPTIONS sip:{address}:{port} SIP/2.0",
        f"Via: SIP/2.0/{_VIA[kind]} {host}:{own};branch=z9hG4bK{nonce};rport",
        "Max-Forwards: 70",
        f"From: <sip:dnat-ping@{host}>;tag={nonce}",
        f"To: <sip:{address}:{port}>",
        f"Call-ID: {nonce}@{host}",
        "CSeq: 1 OPTIONS",
        f"Contact: <sip:dnat-ping@{host}:{own}>",
        "Accept: application/sdp",
        "Content-Length: 0",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def _since(start: float) -> float:
    return (time.monotonic() - start) * 1000

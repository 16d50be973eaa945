"""Single SIP requests over UDP, as programs of bad will send them, too."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import socket

from nodes import Node

from dnat.system import netns

_numbers = itertools.count(1)


def request(
    method: str, uri: str, sender: str, *, to: str | None = None, to_tag: str | None = None, more: str = ""
) -> str:
    """A request without Via and Contact; ``more`` are further header lines."""
    number = next(_numbers)
    tag = f";tag={to_tag}" if to_tag else ""
    return (
        f"{method} {uri} SIP/2.0\r\nMax-Forwards: 70\r\n"
        f"From: <{sender}>;tag=t{number}\r\nTo: <{to or uri}>{tag}\r\n"
        f"Call-ID: {os.getpid()}-{number}@test\r\nCSeq: {number} {method}\r\n{more}Content-Length: 0\r\n\r\n"
    )


class SipClient:
    """A socket on a node's own (ephemeral) port; a context manager."""

    def __init__(self, node: Node, server: str, port: int = 5060) -> None:
        with netns.enter(node.namespace):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((server, port))

    def __enter__(self) -> SipClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def place(self) -> str:
        address, port = self._socket.getsockname()
        return f"{address}:{port}"

    def send(self, data: bytes) -> None:
        # What came before may have been answered with an ICMP error.
        with contextlib.suppress(ConnectionRefusedError):
            self._socket.send(data)

    def exchange(self, message: str, contact: str | None = None) -> str:
        """Send a request until it is answered (RFC 3261, section 17.1); an INVITE's final answer is acknowledged."""
        branch = f"z9hG4bK{os.getpid()}{next(_numbers)}"
        via = f"Via: SIP/2.0/UDP {self.place};rport;branch={branch}\r\n"
        contact = f"Contact: <{contact or f'sip:test@{self.place}'}>\r\n"
        start, _, rest = message.partition("\r\n")
        answer = ""
        for patience in (0.5, 1.0, 2.0, 4.0, 4.0):
            self._socket.settimeout(patience)
            self._socket.send(f"{start}\r\n{via}{contact}{rest}".encode())
            with contextlib.suppress(TimeoutError):
                while branch not in answer or answer.startswith("SIP/2.0 1"):
                    answer = self._socket.recv(65535).decode()
                break
        else:
            raise TimeoutError(f"no final answer to {start}")
        if start.startswith("INVITE"):
            to = re.search(r"^To: .*$", answer, re.MULTILINE)
            ack = re.sub(r"^To: .*$", to[0] if to else "", message, flags=re.MULTILINE).replace("INVITE", "ACK")
            start, _, rest = ack.partition("\r\n")
            self._socket.send(f"{start}\r\n{via}{rest}".encode())
        return answer

    def ask(self, message: str, contact: str | None = None) -> int:
        """Status of the final answer."""
        return int(self.exchange(message, contact).split(" ", 2)[1])

    def register(self, registrar: str, identity: str, user: str, password: str, contact: str | None = None) -> int:
        """REGISTER (to be reached at ``contact``, or nowhere), answer the challenge, and say how that ended.

        RFC 2617, section 3.2.2.
        """
        first = self.exchange(request("REGISTER", registrar, identity, to=identity))
        challenge = re.search(r'realm="([^"]+)", nonce="([^"]+)"', first)
        if challenge is None:
            return int(first.split(" ", 2)[1])
        realm, nonce = challenge.groups()
        ha1, ha2 = _md5(f"{user}:{realm}:{password}"), _md5(f"REGISTER:{registrar}")
        response = _md5(f"{ha1}:{nonce}:00000001:cafe:auth:{ha2}")
        header = (
            f'Authorization: Digest username="{user}", realm="{realm}", nonce="{nonce}", uri="{registrar}", '
            f'qop=auth, nc=00000001, cnonce="cafe", response="{response}"\r\nExpires: {3600 if contact else 0}\r\n'
        )
        return self.ask(request("REGISTER", registrar, identity, to=identity, more=header), contact)


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()

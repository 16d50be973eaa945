"""Kamailio's remote procedure calls: JSON over a Unix datagram socket (its module jsonrpcs)."""

from __future__ import annotations

import json
import secrets
import socket
from pathlib import Path
from typing import Any

from dnat.errors import NotRunningError, PlatformError

ANSWER_BYTES = 1 << 20


def call(path: Path, method: str, *parameters: str, timeout: float = 3.0) -> Any:
    """Call one method and return its result.

    Raises NotRunningError when Kamailio does not answer, PlatformError when it refuses.
    """
    own = path.with_name(f"answer-{secrets.token_hex(4)}")
    question = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(parameters)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        try:
            connection.bind(str(own))
            # Kamailio is another user, and answers to this.
            own.chmod(0o666)
            connection.settimeout(timeout)
            connection.sendto(json.dumps(question).encode(), str(path))
            answer = json.loads(connection.recv(ANSWER_BYTES))
        except (OSError, ValueError):
            raise NotRunningError("the SIP server does not answer; see: dnatctl sip status") from None
        finally:
            own.unlink(missing_ok=True)
    if "error" in answer:
        raise PlatformError(f"the SIP server refuses {method}: {answer['error'].get('message')}")
    return answer.get("result")

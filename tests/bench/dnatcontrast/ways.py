"""Networks that differ only in how their router shares its address: each is a lab of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from dnat.lab import builder, control
from dnat.lab.demo_stage import leased_block
from dnat.lab.phone import PhoneSettings
from dnat.lab.topology import EXT, LAN, ROUTER_LAN, ROUTER_WAN, Topology
from dnat.sip import certificate
from dnat.system import netns
from dnat.types import PortRange

PLAIN, MASQUERADE, ALG, RELAY, DNAT = (
    "plain routing",
    "masquerading",
    "masquerading + SIP ALG",
    "rtpengine relay",
    "dnat",
)
WAYS = (MASQUERADE, ALG, RELAY, DNAT)
"""What is compared, beside plain routing of addresses that everybody can reach."""

NG_PORT = 2223
"""Where rtpengine takes orders."""
_INSIDE, _OUTSIDE = "phone1", "ext"
_SIP_PORT = 5060
_RTP = PortRange(20002, 20017)
_EXT_RTP = PortRange(40000, 40031)
TONES = {_INSIDE: 440, _OUTSIDE: 880}

_MASQUERADE = """
table ip contrast {
    chain out {
        type nat hook postrouting priority srcnat;
        oifname "wan" masquerade
    }
}
"""
# Kernels since 4.7 assign the helper only where they are told to.
_ALG = """
table ip contrast {
    ct helper sip { type "sip" protocol udp; l3proto ip; }
    chain known {
        type filter hook prerouting priority filter;
        udp dport 5060 ct helper set "sip"
    }
}
"""


@dataclass(frozen=True)
class Way:
    """A network that stands."""

    name: str
    topology: Topology
    phone: PhoneSettings
    """The phone behind the router."""
    ext: PhoneSettings
    """The phone outside."""
    relay: int | None = None
    """Process id of the relay."""
    spare: PortRange | None = None
    """Ports of the LAN's host that no phone uses; None where it may use any."""

    def namespace(self, node: str) -> str:
        return self.topology.namespace(node)

    def seen_from_outside(self, encrypted: bool) -> str:
        """Where the outside phone calls the inside one: where its signalling comes from."""
        if self.name in (PLAIN, DNAT):
            return self.phone.secure_uri if encrypted else self.phone.uri
        user = f"{_INSIDE}-srtp" if encrypted else _INSIDE
        port = f"{_SIP_PORT + 1};transport=tls" if encrypted else str(_SIP_PORT)
        return f"sip:{user}@{ROUTER_WAN}:{port}"


@contextmanager
def standing(name: str, prefix: str, directory: Path) -> Iterator[Way]:
    """One way, as a network in namespaces of its own; gone afterwards."""
    topology = Topology(prefix=prefix, phones=1, own_address=True)
    router, ext = topology.namespace("router"), topology.namespace(_OUTSIDE)
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(builder.destroy, prefix)
        builder.build(topology)
        # Sound for private addresses vanishes in the Internet; it is not refused.
        _ip(ext, "route", "add", str(LAN), *(("via", str(ROUTER_WAN)) if name == PLAIN else ("dev", "eth0")))
        relay, spare = None, None
        address, sip_port, rtp, interface = topology.node(_INSIDE).address, _SIP_PORT, _RTP, "eth0"
        if name == DNAT:
            control.up(topology, lambda _: None)
            block = stack.enter_context(leased_block(topology.namespace(_INSIDE), 2 + len(_RTP)))
            spare = stack.enter_context(leased_block(topology.namespace(_INSIDE), 4)).ports
            address, interface = block.address, "lo"
            sip_port, rtp = block.ports.first, PortRange(block.ports.first + 2, block.ports.last)
        else:
            _write_sysctl(router, "net/ipv4/ip_forward", "1")
        if name in (MASQUERADE, ALG):
            _nft(router, _MASQUERADE + (_ALG if name == ALG else ""))
        if name == RELAY:
            relay = stack.enter_context(_relaying(router, directory))
        yield Way(
            name,
            topology,
            _phone(directory, _INSIDE, topology, address, sip_port, rtp, interface, ROUTER_LAN if relay else None),
            _phone(directory, _OUTSIDE, topology, EXT, _SIP_PORT, _EXT_RTP, "eth0", None),
            relay,
            spare,
        )


def _phone(
    directory: Path,
    name: str,
    topology: Topology,
    address: IPv4Address,
    sip_port: int,
    rtp: PortRange,
    interface: str,
    outbound: IPv4Address | None,
) -> PhoneSettings:
    return PhoneSettings(
        name=name,
        namespace=topology.namespace(name),
        address=address,
        sip_port=sip_port,
        rtp=rtp,
        directory=directory / name,
        tone=TONES[name],
        interface=interface,
        certificate=_certificate(directory / f"{name}-tls", address),
        outbound=outbound,
    )


def _certificate(directory: Path, address: IPv4Address) -> Path:
    pair = certificate.ensure(directory, str(address), address)
    both = directory / "both.pem"
    both.write_text("".join(part.read_text() for part in pair))
    return both


@contextmanager
def _relaying(router: str, directory: Path) -> Iterator[int]:
    """rtpengine, in user space, and a Kamailio that puts its addresses into every SDP; gives rtpengine's process id."""
    relay = ["rtpengine", "--config-file=none", "--foreground", "--log-stderr", "--log-level=4", "--table=-1"]
    relay += [f"--interface=inside/{ROUTER_LAN}", f"--interface=outside/{ROUTER_WAN}"]
    relay += [f"--listen-ng=127.0.0.1:{NG_PORT}", "--port-min=30000", "--port-max=30999"]
    pair = certificate.ensure(directory / "proxy-tls", str(ROUTER_WAN), ROUTER_WAN)
    text = (Path(__file__).parent / "relay.cfg").read_text()
    values = {"inside": ROUTER_LAN, "outside": ROUTER_WAN, "certificate": pair[0], "key": pair[1]}
    values |= {"phone": LAN.network_address + 11, "ng": NG_PORT}
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    configuration = directory / "kamailio.cfg"
    configuration.write_text(text)
    proxy = ["kamailio", "-DD", "-E", "-f", str(configuration), "-Y", str(directory), "-P", str(directory / "pid")]
    with ExitStack() as stack:
        processes = []
        for command in (relay, proxy):
            log = stack.enter_context((directory / f"{command[0]}.log").open("wb"))
            process = netns.popen(command, router, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory)
            processes.append(process)
            stack.callback(_end, process)
        _await_port(router, NG_PORT, "rtpengine", processes[0])
        _await_port(router, _SIP_PORT, "kamailio", processes[1])
        yield processes[0].pid


def _await_port(namespace: str, port: int, name: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        shown = netns.run(["ss", "-Hlnu", f"sport = :{port}"], namespace, capture_output=True, text=True)
        if shown.stdout.strip():
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{name} does not listen at port {port}; its log is {name}.log")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _nft(namespace: str, rules: str) -> None:
    with netns.enter(namespace):
        from nftables import Nftables

        code, _, said = Nftables().cmd(rules)
    if code:
        raise RuntimeError(f"nftables refused the rules: {said}")


def _write_sysctl(namespace: str, key: str, value: str) -> None:
    with netns.enter(namespace):
        Path("/proc/sys", key).write_text(value)


def _ip(namespace: str, *arguments: str) -> None:
    netns.run(["ip", *arguments], namespace, check=True, capture_output=True)

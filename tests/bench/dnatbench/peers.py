"""Routers to compare: each is a complete one in namespaces of its own, and all stand at the same time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from dnat.dataplane import abi, attach, loader, xdp
from dnat.dataplane.router import RouterPlane
from dnat.system import netns
from dnat.types import Owner, PortRange, Protocol
from dnatbench.kernel import Module
from dnatbench.topology import EXTERNAL, HOST, MACS, PORTS, ROUTER_MACS, Router

CONNTRACK_SECONDS = 600
"""Of UDP without an answer: no entry shall expire between two rounds."""


class Peer(Router):
    """A router by the name that reports call it."""

    private = False
    """Hosts behind it have addresses of their own."""

    def install(self) -> None:
        """Make it route, and have what it lets through dropped at the far ends."""
        self.end_packets("tc")

    def forget_flows(self) -> None:
        """Make every flow a new one."""

    def __enter__(self) -> Peer:
        try:
            self.build()
            self.install()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Drop(Peer):
    """Drops everything as soon as it arrives: what the generator and the way in cost."""

    def __init__(self, hook: str) -> None:
        super().__init__(f"drop at {hook.upper()}")
        self._hook = hook

    def install(self) -> None:
        for side, far in (("lan", "wan"), ("wan", "lan")):
            module = Module("programs.c", TARGET=0)
            self.attach("router", side, module.program(f"{self._hook}_drop"), self._hook)
            self.count_at(far, module)


class Redirect(Peer):
    """Sends everything out of the other side without a look at it: the least that a router can do."""

    def __init__(self, hook: str) -> None:
        super().__init__(f"bare redirect at {hook.upper()}")
        self._hook = hook

    def install(self) -> None:
        self.end_packets(self._hook)
        self._modules = []
        for side, far in (("lan", "wan"), ("wan", "lan")):
            module = Module("programs.c", TARGET=self.indices[far])
            self.attach("router", side, module.program(f"{self._hook}_redirect"), self._hook)
            self._modules.append(module)


class Forwarding(Peer):
    """The kernel's own routing, without any filter or NAT."""

    def __init__(self) -> None:
        super().__init__("plain forwarding")


class Nftables(Peer):
    """Ordinary NAT: masquerading out, a port forwarding in, both with conntrack."""

    private = True

    def __init__(self) -> None:
        super().__init__("nftables NAT")

    def install(self) -> None:
        super().install()
        rules = f"""
            add table ip nat
            add chain ip nat pre {{ type nat hook prerouting priority -100 ; }}
            add chain ip nat post {{ type nat hook postrouting priority 100 ; }}
            add rule ip nat pre iifname wan ip daddr {EXTERNAL} dnat to {HOST}
            add rule ip nat post oifname wan masquerade
        """
        with netns.enter(self.namespace):
            from nftables import Nftables as Library

            code, _, said = Library().cmd(rules)
            if code:
                raise RuntimeError(said)
            timeouts = Path("/proc/sys/net/netfilter")
            for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
                (timeouts / name).write_text(str(CONNTRACK_SECONDS))

    def forget_flows(self) -> None:
        from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

        with netns.enter(self.namespace), NFCTSocket() as conntrack:
            conntrack.flush()

    def entries(self) -> int:
        """Flows in its table."""
        with netns.enter(self.namespace):
            return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


class Dnat(Peer):
    """The router role's data plane."""

    def __init__(self, hook: str) -> None:
        super().__init__(f"dnat at {hook.upper()}")
        self._hook = hook
        self.pins = loader.BPFFS / f"bench-{os.getpid()}-{hook}"

    def install(self) -> None:
        self.end_packets(self._hook)
        loader.ensure_loaded("router", self.pins)
        with netns.enter(self.namespace):
            self.plane = RouterPlane.open(self.pins)
            self.plane.configure(self.indices["lan"], self.indices["wan"], {EXTERNAL: False})
            self.plane.set_owners([Owner(EXTERNAL, PortRange(PORTS[0], PORTS[-1]), Protocol.ANY, HOST)])
            self.plane.set_macs({HOST: MACS["lan"]})
            for program, side in (("router_wan", "wan"), ("router_lan", "lan")):
                attach.attach(side, "ingress", loader.program_pin(self.pins, program), program)
            if self._hook == "xdp":
                self._use_xdp()

    def _use_xdp(self) -> None:
        for program, side in (("router_wan_xdp", "wan"), ("router_lan_xdp", "lan")):
            if not xdp.attach(self.indices[side], loader.program_pin(self.pins, program)):
                raise RuntimeError(f"{program} cannot be attached")
        links = {abi.LINK_LAN: "lan", abi.LINK_WAN: "wan"}
        self.plane.set_links({link: (self.indices[side], ROUTER_MACS[side]) for link, side in links.items()})

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.pins, ignore_errors=True)


PEERS: tuple[Callable[[], Peer], ...] = (
    lambda: Drop("xdp"),
    lambda: Drop("tc"),
    lambda: Redirect("xdp"),
    lambda: Redirect("tc"),
    Forwarding,
    Nftables,
    lambda: Dnat("tc"),
    lambda: Dnat("xdp"),
)

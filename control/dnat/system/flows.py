"""Flows whose source the kernel translates (conntrack): ended, so that their next packet is looked at anew."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address
from typing import Any

from dnat.system import rtnetlink
from dnat.types import PortRange

_SOURCE_TRANSLATED = 1 << 4
"""IPS_SRC_NAT of linux/netfilter/nf_conntrack_common.h."""


def end(address: IPv4Address, keep: PortRange | None) -> int:
    """Forget every flow whose source was translated to ``address``, but for those with a port of ``keep``.

    Returns how many. A kernel that tells nothing of its flows keeps them. Raises PlatformError.
    """
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

    ended = 0
    with rtnetlink.refusals(f"end what was translated to {address}"), NFCTSocket() as conntrack:
        for flow in _translated(conntrack):
            seen, port = _seen_as(flow)
            if seen != str(address) or (keep is not None and port in keep):
                continue
            with rtnetlink.expect(errno.ENOENT):  # it ended by itself meanwhile
                conntrack.entry("del", tuple_orig=_original(flow))
                ended += 1
    return ended


def _translated(conntrack: Any) -> list[Any]:
    """The flows whose source is translated; Linux before 5.15 has all of them told."""
    with rtnetlink.expect(errno.EINVAL):  # there is no nf_conntrack_netlink
        return list(conntrack.dump(status=_SOURCE_TRANSLATED, status_mask=_SOURCE_TRANSLATED))
    return []


def _seen_as(flow: Any) -> tuple[str | None, int]:
    """The address and port, or identifier of an ICMP query, that answers go to, unless that is the sender itself."""
    answer, question = flow.get_attr("CTA_TUPLE_REPLY"), flow.get_attr("CTA_TUPLE_ORIG")
    seen = answer.get_attr("CTA_TUPLE_IP").get_attr("CTA_IP_V4_DST")
    ends = answer.get_attr("CTA_TUPLE_PROTO")
    port = ends.get_attr("CTA_PROTO_DST_PORT") or ends.get_attr("CTA_PROTO_ICMP_ID") or 0
    return (None if seen == question.get_attr("CTA_TUPLE_IP").get_attr("CTA_IP_V4_SRC") else seen), port


def _original(flow: Any) -> Any:
    """What identifies a flow."""
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

    tuple_ = flow.get_attr("CTA_TUPLE_ORIG")
    ends, addresses = tuple_.get_attr("CTA_TUPLE_PROTO"), tuple_.get_attr("CTA_TUPLE_IP")
    names = {
        "sport": "CTA_PROTO_SRC_PORT",
        "dport": "CTA_PROTO_DST_PORT",
        "icmp_id": "CTA_PROTO_ICMP_ID",
        "icmp_type": "CTA_PROTO_ICMP_TYPE",
        "icmp_code": "CTA_PROTO_ICMP_CODE",
    }
    return NFCTAttrTuple(
        saddr=addresses.get_attr("CTA_IP_V4_SRC"),
        daddr=addresses.get_attr("CTA_IP_V4_DST"),
        proto=ends.get_attr("CTA_PROTO_NUM"),
        **{name: value for name, kind in names.items() if (value := ends.get_attr(kind)) is not None},
    )

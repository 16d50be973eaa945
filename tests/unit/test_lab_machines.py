"""What makes a machine a node of the lab."""

import pytest

from dnat.errors import UsageError
from dnat.lab.machines import network_commands
from dnat.lab.topology import Topology


def test_cards_get_names_addresses_and_routes() -> None:
    assert network_commands(Topology().node("router"), ["eth0", "wan"]) == [
        "ip link set eth0 down",
        "ip link set eth0 name lan",
        "ip addr replace 10.66.0.1/24 dev lan",
        "ip link set lan up",
        "ip addr replace 203.0.113.1/24 dev wan",
        "ip link set wan up",
        "ip route replace 0.0.0.0/0 via 203.0.113.2",
    ]


def test_a_nodes_only_card_keeps_its_name() -> None:
    assert network_commands(Topology().node("phone1"), ["ens6"])[:2] == [
        f"ip addr replace {Topology().node('phone1').ports[0].address} dev ens6",
        "ip link set ens6 up",
    ]


def test_a_card_for_each_port() -> None:
    with pytest.raises(UsageError, match="2 ports"):
        network_commands(Topology().node("router"), ["eth0"])

#!/bin/bash
# Runs in a machine of the lab at every boot: configure.sh NODE MAC… gives the cards their names and addresses, and starts dnat.
set -euo pipefail

node=$1
python=/usr/lib/dnat/bin/python3
interfaces=()
for mac in "${@:2}"; do
    mac=$(sed 's/../&:/g; s/:$//' <<<"$mac")
    path=$(grep -il "^$mac$" /sys/class/net/*/address | head -1)
    interfaces+=("$(basename "$(dirname "$path")")")
done
# Vagrant's own network keeps the way to the machine; the way to everywhere else is the lab's.
ip route del default 2>/dev/null || true
$python -m dnat.lab.machines "$node" "${interfaces[@]}" | sh -e
[ -e /var/tmp/lab-routes ] || ip -4 route show table all > /var/tmp/lab-routes

case $node in
    ext)
        [ -e /run/services.pid ] || $python -m dnat.lab.services /run/services.pid
        ;;
    *)
        [ "$node" != router ] ||
            $python -c 'from dnat.lab.topology import Topology; print(Topology().node("router").configuration)' \
                > /etc/dnat/dnat.toml
        systemctl enable -q dnat
        # An emulated machine may take longer than systemd waits, and the router may not be up yet: the unit tries again.
        systemctl start --no-block dnat
        ;;
esac

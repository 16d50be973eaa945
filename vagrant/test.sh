#!/bin/bash
# The lab of vagrant/ from nothing to tests to nothing again. What the Vagrantfile reads from the environment holds here.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v vagrant >/dev/null || {
    echo "vagrant is missing: apt-get install vagrant vagrant-libvirt libvirt-daemon-system" >&2
    exit 4
}
DNAT_PACKAGE=$(realpath "${DNAT_PACKAGE:-$(packaging/deb.sh)}")
export DNAT_PACKAGE
cd vagrant
trap 'vagrant destroy -f' EXIT
vagrant validate
read -ra nodes <<<"${DNAT_NODES:-router ext phone1 phone2 sip}"
phones=$(grep -o 'phone[0-9]' <<<"${nodes[*]}" | wc -l)
# The others ask the router for ports; they come up side by side where the provider can.
read -ra others <<<"${nodes[*]/router/}"
vagrant up router
vagrant up "${others[@]}"
# Here, for the trap.
DNAT_LAB=vagrant DNAT_LAB_PHONES=$phones ../.venv/bin/python -m pytest --rootdir .. ../tests/lab

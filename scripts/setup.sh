#!/bin/bash
# Installs what dnat needs on Debian or Ubuntu and makes its virtual environment. Called by `make setup`.
# PYTHON must be the distribution's own: bcc and python-nftables exist only for that one.
set -euo pipefail

packages=(python3-venv python3-bpfcc python3-nftables python3-cryptography linux-libc-dev iproute2 nftables)
lab_packages=(etcd-server baresip-core tcpdump iputils-ping traceroute mtr-tiny iperf3 curl ethtool coturn man-db systemd)
lab_packages+=(dnsmasq-base isc-dhcp-client kea-dhcp4-server iptables e2fsprogs)
# Clocks that are set, in tests.
lab_packages+=(libfaketime)
# The role sip, and the other phones of its tests.
lab_packages+=(kamailio kamailio-tls-modules kamailio-sqlite-modules openssl linphone-cli sip-tester)
# The compiled form of the port server's modules.
lab_packages+=(gcc libc6-dev python3-dev)
# What dnat is compared with; Kea's load generator is in kea-admin.
lab_packages+=(rtpengine-daemon kea-admin)

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }

missing=()
for package in "${packages[@]}" "${lab_packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "these packages are missing: ${missing[*]}; run this as root: sudo make setup" >&2
        exit 4
    fi
    say "installing ${missing[*]}"
    apt-get update -qq
    # Tests run such servers of their own: a new package's must not take their ports, now or at the next boot.
    # One that was here before is the user's.
    services=()
    for service in kamailio coturn rtpengine-daemon kea-dhcp4-server etcd-server; do
        [[ " ${missing[*]} " != *" $service "* ]] || services+=("$service")
    done
    if [ "${#services[@]}" -gt 0 ] && [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    for service in "${services[@]}"; do
        service=${service%-server}
        systemctl disable --quiet "$service" 2>/dev/null || update-rc.d "$service" disable 2>/dev/null || true
    done
fi

if [ ! -x "$VENV/bin/python" ]; then
    say "making the virtual environment in $VENV"
    "$PYTHON" -m venv --system-site-packages "$VENV"
fi
say "installing the Python packages"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore -e '.[dev]'

target=$(readlink -f "$VENV")/bin/dnatctl
# An installed dnatctl (`make install`) keeps its place.
if [ "$(id -u)" -eq 0 ] && { [ ! -e "$LINK" ] || [[ "$(readlink "$LINK")" == */"$VENV"/bin/dnatctl ]]; }; then
    ln -sfn "$target" "$LINK"
    say "dnatctl is $LINK"
fi

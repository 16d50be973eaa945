#!/bin/bash
# Runs in a machine of the lab: installs the package that `make deb` built, and what the lab uses besides.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

[ -e /tmp/dnat.deb ] || { echo "there is no package to install: make deb" >&2; exit 4; }
packages=(/tmp/dnat.deb baresip-core curl iputils-ping nftables)
# Offline it works, too, when the box has all of it.
apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null 2>&1 || {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
}

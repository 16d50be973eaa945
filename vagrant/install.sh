#!/bin/bash
# Runs in a machine of the lab: installs the package that `make deb` built, and what the lab uses besides.
# What was there before the package is kept in /var/tmp/lab-files, for the test that purges it.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

[ -e /tmp/dnat.deb ] || { echo "there is no package to install: make deb" >&2; exit 4; }
install() { apt-get install -y -qq --no-install-recommends "${@}" >/dev/null; }
besides() {
    install baresip-core curl iputils-ping nftables &&
        apt-get satisfy -y -qq --no-install-recommends "$(dpkg-deb -f /tmp/dnat.deb Depends)" >/dev/null
}
# Offline it works, too, when the box has all of it.
besides 2>/dev/null || { apt-get update -qq && besides; }
[ -e /var/tmp/lab-files ] || sh /tmp/files.sh > /var/tmp/lab-files
install /tmp/dnat.deb

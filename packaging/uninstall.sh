#!/bin/bash
# Removes what install.sh put into this machine. Configuration and leases stay unless PURGE is set.
set -euo pipefail

PREFIX=${PREFIX:-/usr/local}
PURGE=${PURGE:-}

if [ -d /run/systemd/system ] && [ -e /etc/systemd/system/dnat.service ]; then
    systemctl disable --now dnat.service
fi
if [ -x "$PREFIX/lib/dnat/bin/dnatctl" ]; then
    "$PREFIX/lib/dnat/bin/dnatctl" down || true
fi
rm -f /etc/systemd/system/dnat.service /etc/systemd/system/run-dnat-bpf.mount
[ ! -d /run/systemd/system ] || systemctl daemon-reload
rm -f /etc/dhcp/dhclient-enter-hooks.d/dnat /etc/NetworkManager/dispatcher.d{,/pre-up.d}/dnat
rm -rf "$PREFIX/lib/dnat" "$PREFIX/share/doc/dnat"
[ "$(readlink "$PREFIX/bin/dnatctl")" != ../lib/dnat/bin/dnatctl ] || rm "$PREFIX/bin/dnatctl"
rm -f "$PREFIX"/share/man/man1/dnatctl*.1 "$PREFIX/share/man/man5/dnat.toml.5" \
    "$PREFIX/share/bash-completion/completions/dnatctl" "$PREFIX/share/zsh/vendor-completions/_dnatctl" \
    "$PREFIX/share/fish/vendor_completions.d/dnatctl.fish"
if [ -n "$PURGE" ]; then
    ! mountpoint -q /run/dnat/bpf || umount /run/dnat/bpf
    rm -rf /etc/dnat /var/lib/dnat /run/dnat
else
    echo "kept: /etc/dnat and /var/lib/dnat (sudo make uninstall PURGE=1 removes them, too)"
fi

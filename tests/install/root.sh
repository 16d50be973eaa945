#!/bin/bash
# A clean Debian root to install into, made once: root.sh DIRECTORY [SUITE]. Needs root, mmdebstrap and the mirror.
# What dnat depends on is in it already, so that what the package itself adds and leaves behind can be told apart.
# DIRECTORY.packages says what is in it; when that is not what is wanted any more, it is made again.
set -euo pipefail

directory=$1
suite=${2:-bookworm}
depends=$(sed -n 's/^Depends: //p' "$(dirname "$0")/../../packaging/deb/control" | sed 's/([^)]*)//g; s/ //g')
tools=nftables,systemd,systemd-sysv,dbus,ca-certificates,curl,iputils-ping,procps
# Of the virtual machines: what boots them, the packet tests, phones, and captures.
tools+=,busybox-static,kmod,ethtool,tcpdump,baresip-core,python3-pytest,python3-hypothesis

mkdir -p "$(dirname "$directory")"
exec 9> "$directory.lock"
flock 9
if [ -d "$directory" ] && [ "$(cat "$directory.packages" 2>/dev/null)" = "$suite $depends,$tools" ]; then
    exit 0
fi
rm -rf "$directory" "$directory.new"
if ! command -v mmdebstrap >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null
fi
# A tar file first: an interrupted run must not leave half a root, with mounts in it, behind.
mmdebstrap --quiet --variant=minbase --dpkgopt=force-unsafe-io --include="$depends,$tools" "$suite" "$directory.tar"
mkdir "$directory.new"
tar -xf "$directory.tar" -C "$directory.new" --exclude='./dev/*'
rm "$directory.tar"
mv "$directory.new" "$directory"
echo "$suite $depends,$tools" > "$directory.packages"

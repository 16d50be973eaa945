#!/bin/bash
# A clean Debian root to install into, made once: root.sh DIRECTORY [SUITE]. Needs root, mmdebstrap and the mirror.
# What dnat depends on is in it already, so that what the package itself adds and leaves behind can be told apart.
set -euo pipefail

directory=$1
suite=${2:-bookworm}
mkdir -p "$(dirname "$directory")"
exec 9> "$directory.lock"
flock 9
[ ! -d "$directory" ] || exit 0
if ! command -v mmdebstrap >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null
fi
depends=$(sed -n 's/^Depends: //p' "$(dirname "$0")/../../packaging/deb/control" | sed 's/([^)]*)//g; s/ //g')
tools=nftables,systemd,systemd-sysv,dbus,ca-certificates,curl,iputils-ping,procps
# A tar file first: an interrupted run must not leave half a root, with mounts in it, behind.
mmdebstrap --quiet --variant=minbase --include="$depends,$tools" "$suite" "$directory.tar"
mkdir "$directory.new"
tar -xf "$directory.tar" -C "$directory.new" --exclude='./dev/*'
rm "$directory.tar"
mv "$directory.new" "$directory"

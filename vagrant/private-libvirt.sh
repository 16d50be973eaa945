#!/bin/bash
# Runs a command beside a libvirtd of its own, in a network namespace of its own, emulating processors:
#
#     sudo DNAT_BOX=… vagrant/private-libvirt.sh make vagrant-test
#
# For machines without systemd, or without a KVM that works. Nothing of the machine's own network or libvirt is touched, and
# nothing is reached from inside: the package is built before, and the box must have what the lab needs (box.sh).
set -euo pipefail

if [ "${1:-}" != --inside ]; then
    DNAT_PACKAGE=${DNAT_PACKAGE:-$(cd "$(dirname "$0")/.." && realpath "$(packaging/deb.sh)")}
    export DNAT_PACKAGE
    exec unshare --net --mount --pid --fork --kill-child --mount-proc "$0" --inside "$@"
fi
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ip link set lo up
# libvirt would go on asking a KVM that does not answer.
if [ -e /dev/kvm ]; then
    install -m 000 /dev/null "$work/kvm"
    mount --bind "$work/kvm" /dev/kvm
fi
for directory in /run /etc/libvirt /var/lib/libvirt /var/log/libvirt; do
    mkdir -p "$directory"
    mount -t tmpfs tmpfs "$directory"
done
mkdir -p /run/sshd /var/lib/libvirt/images
printf 'namespaces = []\nsecurity_driver = "none"\nuser = "root"\ngroup = "root"\n' > /etc/libvirt/qemu.conf
# The user that libvirt wants is made by a package whose services are not wanted here.
for kind in passwd group; do
    getent "$kind" libvirt-qemu > /dev/null && continue
    cp "/etc/$kind" "$work/$kind"
    [ $kind = passwd ] && rest=64055::/var/lib/libvirt:/usr/sbin/nologin || rest=
    echo "libvirt-qemu:x:64055:$rest" >> "$work/$kind"
    mount --bind "$work/$kind" "/etc/$kind"
done
virtlogd -d
libvirtd -d
for _ in $(seq 100); do
    [ -S /run/libvirt/libvirt-sock ] && break
    sleep 0.1
done
export DNAT_DRIVER=qemu VAGRANT_DEFAULT_PROVIDER=libvirt
"$@" || {
    code=$?
    tail -n 20 /var/log/libvirt/libvirtd.log >&2
    exit $code
}

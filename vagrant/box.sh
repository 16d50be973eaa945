#!/bin/bash
# Builds a Debian 12 box for libvirt: box.sh FILE. For a machine that cannot fetch the public one; the box has in it all that
# the lab installs, so its machines need no network. Needs root, mmdebstrap, extlinux, e2fsprogs, fdisk, qemu-utils and vagrant.
set -euo pipefail

output=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d /var/tmp/dnat-box.XXXXXX)
root=$work/root
trap 'umount "$work/mounted" 2>/dev/null || true; rm -rf "$work"' EXIT

depends=$(sed -n 's/^Depends: //p' "$here/../packaging/deb/control" | sed 's/([^)]*)//g; s/ //g')
boots=linux-image-cloud-amd64,initramfs-tools,systemd-sysv,udev,dbus,ifupdown,isc-dhcp-client,openssh-server,sudo
lab=baresip-core,curl,iputils-ping,nftables,procps,ca-certificates
mmdebstrap --quiet --variant=minbase --dpkgopt=force-unsafe-io --include="$depends,$boots,$lab" bookworm "$work/root.tar"
mkdir "$root"
tar -xf "$work/root.tar" -C "$root" --exclude='./dev/*'
rm "$work/root.tar"

# The key that all of Vagrant's boxes begin with; the machines are reached from their host only.
key=$(ruby -e 'puts Gem::Specification.find_by_name("vagrant").gem_dir')/keys/vagrant.pub
chroot "$root" useradd --create-home --shell /bin/bash vagrant
install -d -m 700 "$root/home/vagrant/.ssh"
install -m 600 "$key" "$root/home/vagrant/.ssh/authorized_keys"
chroot "$root" chown -R vagrant: /home/vagrant/.ssh
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' > "$root/etc/sudoers.d/vagrant"
echo 'UseDNS no' >> "$root/etc/ssh/sshd_config"
printf 'auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet dhcp\n' > "$root/etc/network/interfaces"
echo '/dev/vda1 / ext4 defaults 0 1' > "$root/etc/fstab"

kernel=$(basename "$root"/boot/vmlinuz-*)
install -d "$root/boot/extlinux"
cat > "$root/boot/extlinux/extlinux.conf" <<END
DEFAULT debian
LABEL debian
KERNEL /boot/$kernel
INITRD /boot/initrd.img-${kernel#vmlinuz-}
APPEND root=/dev/vda1 rw console=ttyS0 net.ifnames=0 quiet
END

# A disk with one partition, from the first mebibyte on, whose boot loader reads only the older form of ext4.
truncate -s 3G "$work/disk"
echo '2048,,83,*' | sfdisk --quiet "$work/disk"
dd if=/usr/lib/EXTLINUX/mbr.bin of="$work/disk" conv=notrunc status=none
mkfs.ext4 -q -F -O ^64bit,^metadata_csum -E offset=1048576 -d "$root" "$work/disk" 3071M > /dev/null
mkdir "$work/mounted"
mount -o loop,offset=1048576 "$work/disk" "$work/mounted"
extlinux --install "$work/mounted/boot/extlinux" 2> /dev/null
umount "$work/mounted"

qemu-img convert -O qcow2 "$work/disk" "$work/box.img"
echo '{"provider": "libvirt", "format": "qcow2", "virtual_size": 3}' > "$work/metadata.json"
tar -cf "$output" -C "$work" metadata.json box.img

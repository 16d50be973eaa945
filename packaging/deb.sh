#!/bin/bash
# Builds the Debian package into dist/. Needs dpkg-deb and a network or a pip cache; no root.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-/usr/bin/python3}
version=$("$PYTHON" -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
architecture=$(dpkg --print-architecture)
tree=build/deb
package=dist/dnat_${version}_$architecture.deb

rm -rf "$tree"
DESTDIR=$PWD/$tree PREFIX=/usr PYTHON=$PYTHON PYTHONS="3.11 3.12 3.13" packaging/install.sh
# Absolute links to the system's Python are what a package wants.
ln -sfn /usr/bin/python3 "$tree/usr/lib/dnat/bin/python3"
rm -f "$tree"/usr/lib/dnat/bin/python3.*
install -m 644 LICENSE "$tree/usr/share/doc/dnat/copyright"
gzip -9n "$tree"/usr/share/man/man*/*
gzip -9nc CHANGELOG.md > "$tree/usr/share/doc/dnat/changelog.gz"

install -d "$tree/DEBIAN"
size=$(du -sk --exclude=DEBIAN "$tree" | cut -f1)
sed "s/@VERSION@/$version/; s/@ARCHITECTURE@/$architecture/; s/@SIZE@/$size/" packaging/deb/control > "$tree/DEBIAN/control"
(cd "$tree" && find etc -type f -printf '/%p\n' | sort) > "$tree/DEBIAN/conffiles"
install -m 755 packaging/deb/{postinst,prerm,postrm} "$tree/DEBIAN"
(cd "$tree" && find usr lib -type f -print0 | sort -z | xargs -0 md5sum) > "$tree/DEBIAN/md5sums"
chmod -R u=rwX,go=rX "$tree"
printf '==> %s\n' "packing $package" >&2
install -d dist
# xz takes ten times as long and saves a sixth; dpkg 1.21.18, of Debian 12, is the first that reads zstd.
dpkg-deb --build --root-owner-group -Zzstd -z12 "$tree" "$package" > /dev/null
echo "$package"

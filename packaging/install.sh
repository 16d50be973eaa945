#!/bin/bash
# Puts dnat into a tree: `make install` into the machine's own, `make deb` into that of the package.
#
#   DESTDIR   where the tree's root is (nothing: this machine)
#   PREFIX    /usr/local or /usr
#   PYTHONS   versions of Python to carry compiled modules for, besides PYTHON's own
#   COMPILE   1: make C extensions of the port server's pure modules, for PYTHON alone; 0: do not. Without it they are made
#             where there are a C compiler and Python's headers
#   VERSION_SUFFIX is not known here: the version is that of pyproject.toml
#
# The Python packages that a distribution lacks or has too old stand in a virtual environment of dnat's own, which also
# sees the distribution's bcc and python-nftables.
set -euo pipefail
cd "$(dirname "$0")/.."

DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/usr/local}
PYTHON=${PYTHON:-/usr/bin/python3}
PYTHONS=${PYTHONS:-}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$PYTHON" -m venv "$work/pip"
say() { printf '==> %s\n' "$*" >&2; }
pip() { "$work/pip/bin/python" -m pip --quiet --disable-pip-version-check "$@" 2> >(grep -v '^WARNING:' >&2); }

own=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
home=$PREFIX/lib/dnat
tree=$DESTDIR$home
site=$tree/lib/python$own/site-packages

rm -rf "$tree" "$DESTDIR$PREFIX/share/doc/dnat"
install -d "$tree/bin" "$site"
cat > "$tree/pyvenv.cfg" <<END
home = /usr/bin
include-system-site-packages = true
version = $own
END
ln -s "$(readlink -f "$PYTHON")" "$tree/bin/python$own"
ln -s /usr/bin/python3 "$tree/bin/python3"
mapfile -t packages < <("$PYTHON" packaging/requirements.py)
say "Python packages, into $tree"
pip install --no-compile --target "$site" "${packages[@]}"
rm -rf build/lib build/bdist*
headers=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')
if [ -z "${COMPILE:-}" ] && command -v cc > /dev/null && [ -e "$headers/Python.h" ]; then COMPILE=1; fi
if [ "${COMPILE:-0}" = 1 ]; then
    say "the port server's modules are compiled: a minute or so (COMPILE=0 goes without)"
    pip install mypy setuptools wheel
    DNAT_COMPILE=1 pip install --no-build-isolation --no-compile --no-deps --target "$site" .
else
    pip install --no-compile --no-deps --target "$site" .
fi
rm -rf build/lib build/bdist* "${site:?}/bin" "$site"/dnat-*.dist-info/direct_url.json
find "$site" -name direct_url.json -delete

# Pure packages serve every Python; compiled modules carry the version in their name and can stand side by side.
for version in $PYTHONS; do
    [ "$version" = "$own" ] && continue
    ln -s "python$own" "$tree/lib/python$version"
    grep -l 'cpython-' "$site"/*.dist-info/RECORD | while read -r record; do
        name=$(basename "$(dirname "$record")" .dist-info)
        # Our own are compiled for this Python only; others run the modules.
        [ "${name%%-*}" != dnat ] || continue
        pip download --no-deps --only-binary :all: --python-version "$version" -d "$work/$version" "${name/-/==}"
        "$PYTHON" -m zipfile -e "$work/$version/${name/-*/}"-*.whl "$work/$version/tree"
        (cd "$work/$version/tree" && find . -name '*.so' -exec cp --parents {} "$site" \;)
    done
done

cat > "$tree/bin/dnatctl" <<END
#!$home/bin/python3 -I
from dnat.cli import main

main()
END
chmod 755 "$tree/bin/dnatctl"
install -d "$DESTDIR$PREFIX/bin"
ln -sfn ../lib/dnat/bin/dnatctl "$DESTDIR$PREFIX/bin/dnatctl"

units=$DESTDIR/lib/systemd/system
[ "$PREFIX" = /usr ] || units=$DESTDIR/etc/systemd/system
for unit in packaging/systemd/*; do
    install -D -m 644 "$unit" "$units/$(basename "$unit")"
    sed -i "s,@PREFIX@,$PREFIX,g" "$units/$(basename "$unit")"
done
for hooks in dhcp/dhclient-enter-hooks.d NetworkManager/dispatcher.d; do
    install -D -m 755 packaging/dhcp/dnat "$DESTDIR/etc/$hooks/dnat"
done
install -d "$DESTDIR/etc/NetworkManager/dispatcher.d/pre-up.d"
ln -sfn ../dnat "$DESTDIR/etc/NetworkManager/dispatcher.d/pre-up.d/dnat"
[ -e "$DESTDIR/etc/dnat/dnat.toml" ] || install -D -m 644 packaging/dnat.toml "$DESTDIR/etc/dnat/dnat.toml"

PYTHONPATH=$site PYTHONDONTWRITEBYTECODE=1 "$PYTHON" packaging/documents.py install "$DESTDIR$PREFIX/share"

if [ -z "$DESTDIR" ]; then
    "$home/bin/python3" -m compileall -q "$home/lib" || true
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
    echo "dnatctl is $PREFIX/bin/dnatctl; what next: sudo dnatctl init"
fi

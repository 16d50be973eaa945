#!/bin/bash
# fuzz.sh PYTHON SECONDS [TARGET...]: look for defects in each reader that way, and keep in corpus/ what found new paths.
set -euo pipefail
python=$(realpath -s "$1") seconds=$2
shift 2
cd "$(dirname "$0")"
[ $# -gt 0 ] || mapfile -t targets < <("$python" -c 'from targets import TARGETS; print(*TARGETS, sep="\n")')
for target in "${@:-${targets[@]}}"; do
    work=$(mktemp -d)
    mkdir -p "corpus/$target"
    "$python" -c 'import sys; from targets import seeds; seeds(sys.argv[1], sys.argv[2])' "$target" "$work"
    cp "corpus/$target"/* "$work" 2>/dev/null || true
    echo "== $target, $seconds s"
    "$python" fuzz.py "$target" "$seconds" "$work"
    # The fewest files that reach what all of them reach; large ones would not pay for their place.
    small=$(mktemp -d)
    "$python" fuzz.py "$target" 0 "$small" "$work" -merge=1 2>/dev/null
    rm -rf "corpus/$target"
    mkdir "corpus/$target"
    find "$small" -type f -size -2k -print0 | xargs -0 -r cp -t "corpus/$target"
    rm -rf "$work" "$small"
    echo "   $(find "corpus/$target" -type f | wc -l) files"
done

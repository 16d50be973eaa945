#!/bin/bash
# fuzz.sh PYTHON SECONDS [TARGET...]: look for defects in each reader that way, and keep in corpus/ what found new paths.
set -euo pipefail
python=$(realpath -s "$1") seconds=$2
shift 2
cd "$(dirname "$0")"
[ $# -gt 0 ] || mapfile -t targets < <("$python" -c 'from targets import TARGETS; print(*TARGETS, sep="\n")')
for target in "${@:-${targets[@]}}"; do
    known=$(mktemp -d) fresh=$(mktemp -d)
    mkdir -p "corpus/$target"
    "$python" -c 'import sys; from targets import seeds; seeds(sys.argv[1], sys.argv[2])' "$target" "$known"
    cp "corpus/$target"/* "$known" 2>/dev/null || true
    echo "== $target, $seconds s"
    "$python" fuzz.py "$target" "$seconds" "$fresh" "$known"
    # What led to something new, the shortest first: a corpus is read again in every test run.
    find "$fresh" -type f -size -2k -printf '%s %p\n' | sort -n | sed -n '1,60p' | cut -d' ' -f2 | xargs -r cp -t "corpus/$target"
    rm -rf "$known" "$fresh"
    echo "   $(find "corpus/$target" -type f | wc -l) files"
done

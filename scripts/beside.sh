#!/bin/bash
# Makes targets one after the other, and beside them one that takes what time the processors have left:
#
#     scripts/beside.sh TARGET -- TARGET…
#
# Says what the one beside said when the others are through. Fails when one of them fails. Called by `make test`.
set -euo pipefail
make=(${MAKE:-make} --no-print-directory)
beside=$1
shift 2

log=$(mktemp)
# A session of its own, so that all of it can be ended.
setsid nice -n 10 "${make[@]}" "$beside" > "$log" 2>&1 < /dev/null &
running=$!
trap '[ -z "$running" ] || kill -- "-$running" 2> /dev/null || true; rm -f "$log"' EXIT
for target in "$@"; do
    "${make[@]}" "$target"
done
began=$SECONDS
code=0
wait "$running" || code=$?
running=
cat "$log"
echo "make $beside, begun beside the others, was waited for $((SECONDS - began)) s"
exit "$code"

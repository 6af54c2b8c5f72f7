#!/bin/bash
# One training in two processes of this machine, as on two machines: `make two-workers FLAGS="--data_dir=… --run_dir=…"`.
#
#     experiments/cluster/two_workers.sh --task=abdomen --setting=ours --data_dir=data/abdomen --run_dir=runs/ours
#
# For trying out several workers without a cluster; it is no faster than one process with all of the machine.
set -euo pipefail
read -ra ports < <(python -c 'import socket; s = [socket.create_server(("localhost", 0)) for _ in range(2)]; print(*(x.getsockname()[1] for x in s))')
workers=$(printf '"localhost:%s",' "${ports[@]}")
for index in 0 1; do
	TF_CONFIG="{\"cluster\": {\"worker\": [${workers%,}]}, \"task\": {\"type\": \"worker\", \"index\": $index}}" \
		ummkd train --strategy=multi_worker "$@" &
	started[index]=$!
done
trap 'kill -TERM "${started[@]}" 2>/dev/null || true' TERM INT
code=0
for index in 0 1; do
	wait "${started[index]}" || code=$?
done
exit "$code"

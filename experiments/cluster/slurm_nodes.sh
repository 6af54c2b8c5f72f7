#!/bin/bash
# One training on several SLURM nodes: a worker on each, with all of its GPUs.
#
#     sbatch --nodes=2 --gres=gpu:4 --time=24:00:00 experiments/cluster/slurm_nodes.sh --task=abdomen --setting=ours \
#         --data_dir=data/abdomen --run_dir=runs/ours --global_batch=16
#
# The run's folder must be the same for all nodes; the first one writes it. Submit it again and it goes on.
#SBATCH --job-name=ummkd
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
set -euo pipefail
port=${PORT:-12345}
workers=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/.*/\"&:$port\"/" | paste --serial --delimiters=,)
export workers
# shellcheck disable=SC2016 # $workers and $SLURM_PROCID are for the worker's own shell
srun --kill-on-bad-exit=1 bash -c 'TF_CONFIG="{\"cluster\": {\"worker\": [$workers]}, \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}" \
	exec ummkd train --strategy=multi_worker "$@"' worker "$@"

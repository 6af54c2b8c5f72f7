#!/bin/bash
# Folds and seeds of one setting as a SLURM job array: one training a task, and its evaluation.
#
#     sbatch --array=0-8 --gres=gpu:1 --time=24:00:00 experiments/cluster/slurm_array.sh ours 'data/abdomen-{fold}' --preset=paper
#
# 0-8: three folds × three seeds; task i has fold i % 3 and seed i / 3 [FOLDS=3]. Further arguments go to training.
# Submit it again and what was cut off goes on; what is done stays.
#SBATCH --job-name=ummkd
#SBATCH --signal=B:TERM@120
set -euo pipefail
setting=$1 data=$2
shift 2
fold=$((SLURM_ARRAY_TASK_ID % ${FOLDS:-3})) seed=$((SLURM_ARRAY_TASK_ID / ${FOLDS:-3}))
run=${RUNS:-runs}/$setting-seed$seed-fold$fold
# The same as in experiments/slurm.py: sbatch runs a copy of this file, which finds no other beside it.
run() { # a program that gets the script's SIGTERM, sent two minutes before the time is over, and the time to save
	"$@" &
	child=$! code=0
	trap 'kill -TERM "$child"' TERM
	wait "$child" || code=$?
	while kill -0 "$child" 2> /dev/null; do code=0; wait "$child" || code=$?; done # the signal ends one wait
	return "$code"
}
run ummkd train --task="${TASK:-abdomen}" --setting="$setting" --seed=$seed \
	--data_dir="${data//\{fold\}/$fold}" --run_dir="$run" "$@"
if grep -q '"status": "finished"' "$run/run.json"; then # and was not ended earlier by --max_hours
	run ummkd evaluate --run_dir="$run"
fi

# shellcheck shell=bash
# Sourced by the sbatch files: run a command once on each node, and queue the job again if it was told to stop.
# Variables: REQUEUES, how often a job may be queued again (default 100); those of launch.sh.
cd "$SLURM_SUBMIT_DIR" || exit
# What launch.sh would ask Slurm for; a container cannot.
HEAD=${HEAD:-$(bash bash_scripts/slurm/head.sh)}
export HEAD
# Without these, a step of one task gets one core. With --wait, nodes that end before others leave them time to finish.
step_options=(
  --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" --cpu-bind=none --wait="${GRACE:-120}"
  --open-mode=append --output="${SLURM_JOB_NAME}-%j-node%n.log"
)

# train RECIPE [key=value ...]: train in a container or without, as CONTAINER says.
train() {
  case "${CONTAINER:-}" in
    '') run_job bash bash_scripts/launch.sh train "$@" ;;
    docker) run_job bash bash_scripts/docker_run.sh train "$@" ;;
    pyxis)
      step_options+=(
        --container-image="${IMAGE:?error: IMAGE names the squashed image, on storage that every node sees}"
        --container-mounts="${MOUNTS:?error: MOUNTS names the folders of data and runs}"
        --container-workdir=/lsdali --no-container-mount-home
      )
      run_job bash bash_scripts/launch.sh train "$@" ;;
    *) echo "error: CONTAINER=$CONTAINER: pyxis, docker or nothing" >&2; exit 2 ;;
  esac
}

# run_job COMMAND...: exit 0 if the run is finished, and with srun's status if it failed. At a signal USR2 all ranks save
# and stop, and the job goes back into the queue. Slurm itself does so where a node fails.
run_job() {
  echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), nodes $SLURM_JOB_NODELIST, first $HEAD: $*"
  local step status stopped='' signal
  srun "${step_options[@]}" "$@" &
  step=$!
  trap 'stopped=1 signal=1; echo "told to stop"; kill -USR2 "$step"' USR2
  while :; do # a trap ends wait early
    signal='' status=0
    wait "$step" || status=$?
    if [ -z "$signal" ]; then break; fi
  done
  echo "srun ended with status $status"
  # A job that is to make room is not told itself: Slurm sends TERM to its steps, and the run saves and stops.
  if [ -z "$stopped" ] && scontrol --oneliner show job "$SLURM_JOB_ID" | grep -q ' PreemptTime=[0-9]'; then
    stopped=1
    echo "stopped to make room for another job"
  fi
  if [ -z "$stopped" ] || [ "$status" = 0 ]; then exit "$status"; fi
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "${REQUEUES:-100}" ]; then
    echo "error: queued again ${REQUEUES:-100} times (REQUEUES); submit it again to go on" >&2
    exit 1
  fi
  scontrol requeue "$SLURM_JOB_ID"
}

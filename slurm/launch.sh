# Finds the launcher by which ranks see each other. Sourced by the batch scripts, which set `script`, their name, `python`, `cpus`
# and `told`, a file. `find_launcher` sets `launch`; it returns 69 if a launcher did not start all ranks in time and none worked,
# 2 if none worked, 75 if the job was asked to stop.

longest=${REPRO_START_SECONDS:-600}
seconds=$((${longest%.*} > 1 ? ${longest%.*} : 1)) late=$((${longest%.*} < 20 ? seconds : 20))
export REPRO_START_SECONDS=$longest

# An mpiexec in Python's folder belongs to the MPI that `make setup` has put there, and starts its ranks by srun. MPICH must
# not be started by srun itself: Slurm's pmi2 cuts the lines in which ranks of some versions tell each other their addresses,
# and they wait forever. Neither mpiexec may bind ranks (Open MPI's would; MPICH's does not): it knows Slurm's cores, not ours.
# srun is for an MPI of the cluster. --cpus-per-task: since version 22.05, srun does not inherit it from sbatch.
# --wait and --kill-on-bad-exit: ranks exit together, each with the run's status, so the first one to exit must not cause
# the others to be killed; but a rank that is still running a minute (of engines: 10 seconds) later waits in vain.
[[ -n ${LAUNCH:-} ]] || export PRTE_MCA_hwloc_default_binding_policy=none
candidates() {
    local beside=${python[0]%/*}/mpiexec by_srun elsewhere types
    by_srun="srun --cpus-per-task=$cpus --cpu-bind=cores --kill-on-bad-exit=0 --wait=${wait:-60}"
    if [[ -n ${LAUNCH:-} ]]; then
        echo "$LAUNCH"
        return
    fi
    if [[ ${python[0]} == */* && -x $beside ]]; then echo "$beside"; else beside=''; fi
    echo "$by_srun"
    types=$(srun --mpi=list 2>&1 || true)
    if [[ -z ${SLURM_MPI_TYPE:-} && $types == *pmix* ]]; then echo "$by_srun --mpi=pmix"; fi
    elsewhere=$(command -v mpiexec || true)
    if [[ -n $elsewhere && $elsewhere != "$beside" ]]; then echo "$elsewhere"; fi
    if [[ -z ${SLURM_MPI_TYPE:-} && $types == *pmi2* ]]; then echo "$by_srun --mpi=pmi2"; fi
}

# A signal that bash traps interrupts `wait`, which then returns the signal: so again, until it is the status of the step.
step='' asked=0 interrupted=0
finish_step() {
    interrupted=1
    while ((interrupted)); do
        interrupted=0 status=0
        wait "$step" || status=$?
    done
    step=''
}

within() { timeout "$1" tail -s 0.1 --pid="$2" -f /dev/null; }  # whether a process ends in so many seconds

# A launcher that itself hangs starts no rank that could say so. It has a quarter longer than the ranks, which load Python first.
attend() {
    within "$late" "$1" || echo "$script: \`${launch[*]}\` has not started all ranks after $late s: waiting until $longest s" >&2
    within $((seconds * 5 / 4 + 1 - late)) "$1" || kill "$1"
    within 10 "$1" || kill -KILL "$1"
}

probe() {
    "${launch[@]}" "${python[@]}" -m repro ranks >"$told" &
    step=$!
    attend "$step" &
    finish_step
}

find_launcher() {
    local commands command hung=0 ranks reason began
    mapfile -t commands < <(candidates)
    for command in "${commands[@]}"; do
        read -ra launch <<<"$command"
        began=$SECONDS
        probe
        ((!asked)) || return 75
        ranks=$(grep -c '^rank ' "$told" || true)
        if ((!status && $(grep -c '^rank 0 of ' "$told" || true) == 1)) &&
            [[ -n ${LAUNCH:-} || $ranks == "${SLURM_NTASKS:-$ranks}" ]]; then
            cat "$told"
            echo "$script: ranks are started by \`$command\`"
            return 0
        fi
        if ((status == 69 || SECONDS - began > seconds)); then
            hung=1 reason="the ranks did not start within $longest s (REPRO_START_SECONDS)"
        elif ((status == 0 || status == 2)); then
            reason="its ranks do not see each other"
        else
            reason="it ended with status $status"
        fi
        echo "$script: not by \`$command\`: $reason; see Troubleshooting in docs/cluster.md" >&2
    done
    ((!hung)) || return 69
    return 2
}

#!/bin/bash
# Three seeds of a recipe as an array job, each on every GPU of two nodes. Two minutes before its time is up a job is
# warned (USR1): it keeps its step and ends, and is put back into the queue, where it goes on.
# From the root of the project, on a file system that all nodes share:  sbatch docs/slurm.sh
#SBATCH --job-name=mim4dd
#SBATCH --array=0-2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

seed=${SLURM_ARRAY_TASK_ID:-0}
runs=checkpoints/seed_$seed
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

resume=()
if compgen -G "$runs/*/version_*/checkpoints/last.ckpt" > /dev/null; then
    resume=(--ckpt_path last)
fi

warned=false
trap 'warned=true; kill -USR1 "$step"' USR1  # which srun passes on to all processes

srun --kill-on-bad-exit=1 mim4dd fit \
    -c configs/distill/cifar10_ipc1.yaml -c configs/with/mutual_information.yaml -c configs/with/ddp.yaml \
    --trainer.num_nodes "${SLURM_NNODES:-1}" --trainer.devices "${SLURM_NTASKS_PER_NODE:-1}" \
    --trainer.logger.save_dir "$runs" --seed_everything "$seed" "${resume[@]}" &
step=$!
wait $step
code=$?
while kill -0 $step 2> /dev/null; do  # the warning ended the wait, not the step
    wait $step
    code=$?
done

# Not by the exit code: a step that has failed may end with any, as srun kills its other processes.
if $warned && [ $code -ne 0 ]; then
    scontrol requeue "${SLURM_JOB_ID:?}"  # of this element of the array alone
fi
exit $code

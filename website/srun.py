"""A Slurm of two tasks on this machine: `srun COMMAND ...`, for `website.check_commands`.

It says to every task what Slurm says and JAX reads: which job it is, where its first host is, how
many tasks there are, and which of them this one is.
"""

import os
import subprocess
import sys

TASKS = 2


def main() -> int:
    """Runs the command once for each task; the exit code is the first that is not 0."""
    tasks = [
        subprocess.Popen(sys.argv[1:], env=os.environ | told(rank), stdin=subprocess.DEVNULL)
        for rank in range(TASKS)
    ]
    return max(abs(each.wait()) for each in tasks)


def told(rank: int) -> dict[str, str]:
    """The variables of a task."""
    return {
        "SLURM_JOB_ID": str(os.getpid()),  # JAX makes the port of the first task of it
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(TASKS),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


if __name__ == "__main__":
    sys.exit(main())

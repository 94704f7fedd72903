"""Several machines by Slurm through submitit: python examples/slurm_submitit.py --cluster slurm --nodes 2.

Each of Slurm's tasks is one process of the group, as under torchrun. ``--cluster local`` starts them here.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import submitit


def train(recipe: str | None, output: str) -> dict[str, Any] | None:
    """Run one process of a run; the first one returns the closing figures."""
    place = submitit.JobEnvironment()
    os.environ |= {
        "RANK": str(place.global_rank),
        "LOCAL_RANK": str(place.local_rank),
        "WORLD_SIZE": str(place.num_tasks),
        "MASTER_ADDR": place.hostnames[0],
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(20_000 + int(place.job_id.partition("_")[0]) % 20_000)),
    }
    # After the variables are set: Accelerate reads them once.
    from asymlora import Recipe, finetune

    # A job that Slurm ends early and puts back in the queue goes on from its last checkpoint.
    unfinished = Path(output, "recipe.yaml").exists()
    result = finetune(Recipe.load(recipe) if recipe else Recipe(), output=output, resume=unfinished)
    return result.to_dict() if place.global_rank == 0 else None


def submit(recipe: str | None, output: Path, *, cluster: str, nodes: int, per_node: int) -> dict[str, Any]:
    """Put a run in the queue and wait for its closing figures; logs stand in a folder beside the run's."""
    executor = submitit.AutoExecutor(folder=f"{output}-logs", cluster=cluster)
    executor.update_parameters(nodes=nodes, tasks_per_node=per_node, timeout_min=240, name="asymlora")
    if cluster == "slurm":
        executor.update_parameters(cpus_per_task=8)  # and gpus_per_node=..., slurm_partition=... as your site has them
    job = executor.submit(train, recipe, str(output))
    print(f"job {job.job_id}; logs in {output}-logs")
    return job.results()[0]


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Fine-tune on a cluster.")
    options.add_argument("--recipe", help="YAML file; default: the embedded first run")
    options.add_argument("--output", type=Path, default=Path("runs/submitit"), help="on a disk that all nodes see")
    options.add_argument("--cluster", choices=["slurm", "local"], default="local")
    options.add_argument("--nodes", type=int, default=1)
    options.add_argument("--per-node", type=int, default=2, help="processes on each node")
    given = options.parse_args()
    found = submit(given.recipe, given.output, cluster=given.cluster, nodes=given.nodes, per_node=given.per_node)
    print(f"steps: {found['steps']}\n{found['metric']}: {found['score']:.4f}, before: {found['before']:.4f}")

"""Several machines by Ray Train: python examples/ray_train.py. A plain torch loop under DDP, in two workers here."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

import asymlora as al
from evidence import Facts, Watch
from small_models import batch, classifier


def work(settings: dict[str, Any]) -> None:
    """Train in one worker; the adapter of the first one is the checkpoint that Ray keeps."""
    context = train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    spec = al.AdapterSpec.b_only(rank=4, targets=("query", "value"), modules_to_save=("classifier",))
    attached = al.attach(classifier(), spec)  # before prepare_model, which wraps it in DDP
    watch = Watch(attached, batch())

    model = prepare_model(attached)
    optimizer = torch.optim.AdamW(al.param_groups(model, lr=1e-2, weight_decay=0.01))
    share = {name: rows.chunk(workers)[rank] for name, rows in batch().items()}
    for _ in range(settings["steps"]):
        loss = model(**share).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        al.save_adapter(model, folder)
        facts = watch.facts(attached, lambda: al.load_adapter(classifier(), folder))
        train.report(vars(facts), checkpoint=Checkpoint.from_directory(folder) if rank == 0 else None)


def main() -> Facts:
    """Start two workers on this machine, wait for them, load the adapter that Ray kept, return what was found."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            work,
            train_loop_config={"steps": 30},
            scaling_config=ScalingConfig(num_workers=2, use_gpu=False, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=folder, name="asymlora"),  # on several machines: one that all see
        )
        result = trainer.fit()
        with result.checkpoint.as_directory() as kept:
            al.load_adapter(classifier(), kept)
        return Facts(**result.metrics)


if __name__ == "__main__":
    # Each worker imports torch and transformers first; after 60 s Ray would give up and start them again, for ever.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    # The workers import the files beside this one.
    ray.init(num_cpus=2, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}})
    main().show()
    ray.shutdown()

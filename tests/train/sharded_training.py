"""One of several processes that train a tiny model under FSDP2 on a CPU: `sharded_training.py MODEL WORK [bf16]`.

accelerate shards on devices alone; its own FSDP2 code is told here that this is one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from tiny_training import load, random_examples, teach

from edgedistill.core.runfolder import SilentReporter
from edgedistill.train import loop
from edgedistill.train.shards import is_sharded, whole


class Sharding(Accelerator):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False,
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        )  # fmt: skip
        if settings["mixed_precision"] == "bf16":
            plugin.set_mixed_precision("bf16")
        self.state.distributed_type, self.state.fsdp_plugin = DistributedType.FSDP, plugin


def train(folder: Path, work: Path, *, bf16: bool = False, stop: bool = False) -> Any:
    """Two epochs on taught examples; with `stop` interrupted after the third step."""
    model = load(folder)
    examples = teach(load(folder), random_examples(24))

    class Interrupting(SilentReporter):
        def progress(self, done: float, *_: object, **__: object) -> None:
            if stop and done == 3:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)

    loop.train_model(
        model, train=examples[:20], valid=examples[20:], arm="a", checkpoints=work / "checkpoints",
        metrics=work / "metrics.jsonl", seed=1, lr=3e-3, epochs=2, batch_size=5, report=Interrupting(), kd_weight=0.5,
        bf16=bf16, micro_batch_tokens=40,
    )  # fmt: skip
    return model


if __name__ == "__main__":
    loop.Accelerator = Sharding  # type: ignore[misc]
    how, work = sys.argv[3:], Path(sys.argv[2])
    try:
        model = train(Path(sys.argv[1]), work, bf16="bf16" in how, stop="stop" in how)
    except KeyboardInterrupt:
        sys.exit(0)
    weights = whole({name: p.detach() for name, p in model.named_parameters()})
    if not is_sharded(model):
        sys.exit("nothing is sharded")
    np.savez(work / "weights.npz", **{name: w.numpy() for name, w in weights.items()})

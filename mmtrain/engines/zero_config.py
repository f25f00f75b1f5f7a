"""DeepSpeed's own config, from ours."""

from typing import Any

from mmtrain.engines import EngineConfig
from mmtrain.engines.optim import OptimizerConfig

MAX_BUCKET = 50_000_000  # elements: 200 MB of fp32


def zero_config(config: EngineConfig, *, optimizer: OptimizerConfig, size: int) -> dict[str, Any]:
    """DeepSpeed's config. Batches and accumulation are the train loop's: it is told one of one.

    Args:
        config: the engine's.
        optimizer: the optimizer's.
        size: elements of the model; the buffer of gradients to reduce need not be larger.
    """
    low_precision = config.precision == "bf16"
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": False,
        "reduce_bucket_size": min(size, MAX_BUCKET),
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": optimizer.clip_norm if config.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": low_precision, "check_grad_overflow": True},
    }
    if low_precision and config.zero_stage > 1:  # ZeRO 1 adds micro-batches up in bf16
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings

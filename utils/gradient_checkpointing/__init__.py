"""Gradient checkpointing: runs of blocks are recomputed in the backward pass instead of kept in memory.

checkpointable: our own networks and sequences of modules; chain: networks that are not ours; plan: where to cut;
recomputation: the recomputing; activation_memory: the bytes that a plan is made from.
"""

from utils.gradient_checkpointing.activation_memory import SavedActivations, trace_blocks
from utils.gradient_checkpointing.chain import checkpoint_chain, remove_gradient_checkpointing
from utils.gradient_checkpointing.checkpointable import (
    PLANNED_BATCH,
    Checkpointable,
    CheckpointedSequential,
    apply_gradient_checkpointing,
    checkpoint_sequential,
    checkpointing_options,
    estimate_memory_savings,
)
from utils.gradient_checkpointing.plan import Plan, choose_plan
from utils.gradient_checkpointing.recomputation import CheckpointFunction, run_recomputed

__all__ = [
    "PLANNED_BATCH",
    "CheckpointFunction",
    "Checkpointable",
    "CheckpointedSequential",
    "Plan",
    "SavedActivations",
    "apply_gradient_checkpointing",
    "checkpoint_chain",
    "checkpoint_sequential",
    "checkpointing_options",
    "choose_plan",
    "estimate_memory_savings",
    "remove_gradient_checkpointing",
    "run_recomputed",
    "trace_blocks",
]

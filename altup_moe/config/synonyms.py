"""Other programs' names of configuration keys (Hugging Face, Megatron's flags, nanoGPT, torchtitan, Lightning).

A key that does not exist is looked up by its last part, in whatever section it stands. Upper and lower case, dashes and
underscores make no difference: ``nHead``, ``n-head`` and ``n_head`` are one name.
"""

from __future__ import annotations

import re

_TABLE = """
model.num_layers: n_layer n_layers num_hidden_layers depth encoder_num_layers
model.hidden_size: hidden d_model dim n_embd n_embed embed_dim embedding_size model_dim hidden_dim
model.ffn_hidden_size: d_ff ffn ffn_dim ffn_size intermediate_size ffn_hidden mlp_dim inner_dim
model.num_attention_heads: n_head n_heads num_heads heads attention_heads attn_heads
model.num_query_groups: n_kv_heads num_kv_heads kv_heads num_key_value_heads query_groups
model.kv_channels: head_dim d_head d_kv head_size
model.seq_length: seq_len context_length context_len block_size max_seq_len max_seq_length max_length ctx_len n_ctx
    n_positions sequence_length context_size
model.max_positions: max_position_embeddings
model.vocab_size: vocab n_vocab padded_vocab_size vocabulary_size
model.share_embeddings_and_output_weights: tie_embeddings tie_word_embeddings tied_embeddings weight_tying
model.rotary_base: rope_theta rope_base theta
model.layernorm_epsilon: rms_norm_eps norm_eps layer_norm_eps norm_epsilon
model.init_method_std: initializer_range init_std
model.hidden_dropout: dropout resid_dropout dropout_rate
model.attention_dropout: attn_dropout attn_pdrop
model.qk_layernorm: qk_norm query_key_norm
model.arch: architecture model_type
altup.width: k altup_k streams num_streams n_streams altup_num_inputs stream_width expansion_rate
altup.variant: altup_variant
altup.recycled: recycle
sequence.stride: seq_stride altup_stride
moe.num_experts: experts n_experts n_expert num_local_experts n_routed_experts expert_count
moe.top_k: topk router_topk moe_top_k num_experts_per_tok experts_per_token num_active_experts
moe.capacity_factor: capacity expert_capacity moe_capacity
moe.ffn_hidden_size: moe_intermediate_size expert_ffn expert_hidden_size expert_dim
moe.aux_loss_coeff: aux_loss aux_loss_weight router_aux_loss_coef aux_coeff load_balancing_loss
moe.z_loss_coeff: z_loss z_loss_weight router_z_loss_coef
moe.shared_expert_size: shared_expert shared_experts n_shared_experts
moe.layer_freq: moe_every moe_frequency moe_layer_frequency decoder_sparse_step
moe.backend: moe_backend expert_backend
parallel.tensor: tp tp_size tensor_parallel tensor_parallel_size tensor_model_parallel_size
parallel.pipeline: pp pp_size pipeline_parallel pipeline_parallel_size stages
parallel.virtual_pipeline: vpp vp virtual_stages interleave
parallel.expert: ep ep_size expert_parallel expert_parallel_size
parallel.expert_tensor: etp expert_tensor_parallel expert_tensor_parallel_size
parallel.context: cp cp_size context_parallel context_parallel_size
parallel.data: dp dp_size data_parallel data_parallel_size
parallel.distributed_optimizer: zero1 use_distributed_optimizer shard_optimizer
parallel.zero_stage: zero zero3
data.corpus: dataset data_path train_data dataset_path dataset_name train_file train_files data_dir
data.tokenizer: tokenizer_path tokenizer_name tokenizer_dir tokenizer_model
data.add_special_tokens: add_bos add_bos_token bos
data.valid_fraction: val_fraction val_split validation_split eval_fraction
data.cache: cache_dir data_cache
optim.optimizer: optim optim_type optimizer_type optimizer_name
optim.learning_rate: lr max_lr peak_lr base_lr
optim.min_learning_rate: min_lr lr_min final_lr end_lr
optim.warmup_steps: warmup warmup_iters num_warmup_steps lr_warmup_iters lr_warmup_steps
optim.schedule: scheduler lr_schedule lr_scheduler lr_scheduler_type lr_decay_style
optim.decay_steps: lr_decay_iters lr_decay_steps decay_iters
optim.weight_decay: wd l2
optim.adam_beta1: beta1 adam_b1
optim.adam_beta2: beta2 adam_b2
optim.adam_eps: eps adam_epsilon epsilon
optim.clip_grad: clip grad_clip clip_norm max_grad_norm max_norm gradient_clip_val gradient_clipping clip_grad_norm
    grad_clip_norm
optim.parametrization: use_mup mup parameterization
optim.mup_base_hidden_size: mup_base_width base_width mup_base_dim mup_base_model_width
optim.mup_base_num_layers: mup_base_depth base_depth
train.steps: max_steps num_steps n_steps total_steps train_iters max_iters iters iterations
train.global_batch_size: batch_size batch bs gbs global_batch total_batch_size train_batch_size
train.micro_batch_size: micro_batch mbs device_batch_size per_device_batch_size per_device_train_batch_size
    local_batch_size train_micro_batch_size_per_gpu
train.seed: random_seed rng_seed manual_seed
train.precision: dtype torch_dtype bf16 bfloat16 fp32 amp mixed_precision params_dtype
train.recompute: activation_checkpointing gradient_checkpointing grad_checkpointing recompute_granularity remat
train.eval_interval: eval_steps eval_every val_interval validation_interval eval_freq val_check_interval
train.eval_samples: eval_iters eval_batches max_eval_samples val_samples
train.stop_after: exit_interval early_stop_step
train.transformer_engine: te use_transformer_engine
train.loss_chunk: chunked_loss chunked_cross_entropy num_output_chunks fused_linear_cross_entropy
    cross_entropy_chunk_size
train.compile: torch_compile compile_model use_compile
checkpoint.save_interval: save_steps save_every ckpt_interval checkpoint_interval save_freq checkpoint_every
checkpoint.keep: save_total_limit keep_last keep_last_k keep_latest_k max_to_keep
checkpoint.asynchronous: async_save async_mode async_checkpoint
checkpoint.initial_load_path: load load_path init_from pretrained from_pretrained model_name_or_path finetune_from
    load_checkpoint restore_from pretrained_checkpoint
checkpoint.branch_from: fork_from branch warmstart_from
checkpoint.resume: auto_resume resume_training
log.run_dir: output_dir out_dir save_dir save_path save run_name exp_dir log_dir out
log.interval: log_interval logging_steps log_every log_freq log_every_n_steps
log.profile_steps: profile profiler profiling
log.tensorboard: tb tensorboard_dir enable_tensorboard
log.wandb_project: wandb use_wandb wandb_name project enable_wandb
log.mlflow_experiment: mlflow use_mlflow mlflow_project
"""
"""Dotted key here: the last part of its name elsewhere, and others; a line that is indented continues the one above."""

_IN_SECTION = """
model.num_layers: layers model.layers
moe.ffn_hidden_size: moe.hidden moe.hidden_size moe.dim moe.ffn moe.d_ff moe.ffn_dim moe.ffn_size moe.intermediate_size
    moe.mlp_dim
moe.layer_freq: moe.layers
moe.top_k: moe.k
checkpoint.save_interval: checkpoint.interval checkpoint.steps
checkpoint.initial_load_path: checkpoint.path
data.corpus: data.path data.file data.name
log.run_dir: log.dir checkpoint.dir
log.profile_steps: log.profile
optim.optimizer: optim.type optim.name optimizer.type optimizer.name
altup.width: altup.n
model.seq_length: sequence.length
"""
"""Where the section, or its absence, says more than the last part."""

_STEP = "the tokens of a step are train.global_batch_size * model.seq_length"
_ADVICE: dict[str, tuple[str, str]] = {
    "epochs num_epochs max_epochs num_train_epochs n_epochs": (
        "train.steps",
        f"runs are counted in steps, epochs * tokens of the data / tokens of a step; {_STEP}",
    ),
    "tokens max_tokens total_tokens train_tokens token_budget num_tokens": (
        "train.steps",
        f"runs are counted in steps, tokens / tokens of a step; {_STEP}",
    ),
    "grad_accum grad_acc gradient_accumulation gradient_accumulation_steps accumulate_grad_batches grad_accum_steps "
    "accumulation_steps num_microbatches": (
        "train.global_batch_size",
        "micro-batches of a step are train.global_batch_size / (train.micro_batch_size * data-parallel ranks)",
    ),
    "world_size gpus num_gpus n_gpus nproc nproc_per_node devices ranks num_devices": (
        "parallel.data",
        "the launcher starts the ranks: altup-moe launch torchrun --ranks-per-node N -- altup-moe train CONFIG; "
        "data-parallel ranks are what the layout leaves",
    ),
    "nodes num_nodes nnodes": (
        "parallel.data",
        "the launcher starts the nodes: altup-moe launch torchrun --help says how",
    ),
    "sp sequence_parallel sequence_parallelism": (
        "parallel.tensor",
        "sequence parallelism goes with tensor parallelism, 2 or more ranks of it",
    ),
    "fsdp fsdp2 fully_shard": (
        "parallel.distributed_optimizer",
        "true shards the optimizer state; for weights too: train.engine deepspeed with parallel.zero_stage 3",
    ),
    "fp16 half float16": ("train.precision", "bf16 or fp32; fp16 is not supported"),
    "warmup_ratio warmup_fraction lr_warmup_fraction": ("optim.warmup_steps", "counted in steps, ratio * train.steps"),
    "betas adam_betas": ("optim.adam_beta1", "the other one is optim.adam_beta2"),
    "resume_from resume_from_checkpoint load_from_checkpoint ckpt_path": (
        "log.run_dir",
        "a run goes on from the newest checkpoint there; weights alone, for a new run: checkpoint.initial_load_path",
    ),
}
"""Names that no single key stands for: the closest key, and how to get there."""

_JOINS = re.compile(r"[-_]")


def joined(name: str) -> str:
    """A name as it is compared: lower case, without dashes and underscores."""
    return _JOINS.sub("", name).lower()


def _read(table: str) -> dict[str, tuple[str, str]]:
    """Joined name -> (dotted key here, "")."""
    found: dict[str, tuple[str, str]] = {}
    for line in table.strip().replace("\n    ", " ").splitlines():
        key, _, names = line.partition(": ")
        found |= {joined(name): (key, "") for name in names.split()}
    return found


SYNONYMS = {
    **{joined(name): advice for names, advice in _ADVICE.items() for name in names.split()},
    **_read(_TABLE),
    **_read(_IN_SECTION),
}
"""Joined name, with its section where that matters -> (dotted key here, how to get there or "")."""


def synonym(key: str, alone: bool = True) -> tuple[str, str] | None:
    """The key here that another program calls `key`: (dotted key, how to get there or ""); None if none is known.

    Args:
        key: dotted, in any section or none, e.g. ``optim.lr``, ``lr``, ``training.grad_accum``.
        alone: whether the last part counts whatever the section.
    """
    name = joined(key)
    return SYNONYMS.get(name) or (SYNONYMS.get(name.rpartition(".")[2]) if alone else None)

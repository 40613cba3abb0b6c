"""Random valid runs with their layouts, for property tests of the planner."""

from __future__ import annotations

from hypothesis import strategies as st

from altup_moe.altup.variants import VARIANTS
from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, ParallelConfig, RunConfig, TrainConfig
from altup_moe.config.checks import check_config, smallest_world

STREAMS = [
    (name, level)
    for name, row in VARIANTS.items()
    for level in row.levels
    if row.planned and (name, level) != ("sum", "branch")
]


@st.composite
def runs(draw: st.DrawFn) -> tuple[RunConfig, int]:
    """(run, world size): any stream, experts or none, any layout of up to 32 ranks."""
    tensor, context, expert_tensor = (draw(st.sampled_from(sizes)) for sizes in ([1, 2], [1, 2], [1, 2]))
    pipeline, virtual = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 1)]))
    variant, level = draw(st.sampled_from(STREAMS))
    experts, freq = draw(st.sampled_from([(0, 1), (4, 1), (8, 2), (4, 4)]))
    scores = draw(st.sampled_from(["softmax", "sigmoid"]))
    first = draw(st.sampled_from([None, 1])) if (pipeline, virtual) == (2, 1) else None
    tied = variant != "sum" and draw(st.booleans())
    model = ModelConfig(
        num_layers=4 if first else pipeline * virtual * draw(st.sampled_from([1, 2])) * (4 if freq == 4 else 2),
        hidden_size=draw(st.sampled_from([32, 48])),
        ffn_hidden_size=draw(st.sampled_from([64, 72])),
        num_attention_heads=4,
        num_query_groups=draw(st.sampled_from([2, 4])),
        kv_channels=draw(st.sampled_from([None, 12])),
        qk_layernorm=draw(st.booleans()),
        seq_length=32,
        vocab_size=64,
        share_embeddings_and_output_weights=tied,
    )
    config = RunConfig(
        model,
        AltUpConfig(
            draw(st.sampled_from([1, 2, 4])),
            variant,
            recycled=variant == "dynamic" or (variant != "sum" and draw(st.booleans())),
            level=level,
        ),
        MoEConfig(
            num_experts=experts,
            layer_freq=freq,
            ffn_hidden_size=draw(st.sampled_from([24, 32])),
            shared_expert_size=draw(st.sampled_from([0, 16])),
            score_function=scores,
            expert_bias_update_rate=0.01 if scores == "sigmoid" else 0.0,
            backend=draw(st.sampled_from(["megatron", "torch"])),
        ),
        ParallelConfig(
            tensor=tensor,
            pipeline=pipeline,
            virtual_pipeline=virtual,
            first_stage_layers=first,
            context=context,
            expert=draw(st.sampled_from([1, 2, 4])) if experts else 1,
            expert_tensor=expert_tensor if experts else 1,
        ),
        train=TrainConfig(micro_batch_size=1, global_batch_size=64),
    )
    world = smallest_world(config.parallel)
    check_config(config, world)
    return config, world

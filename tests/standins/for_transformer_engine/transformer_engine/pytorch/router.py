"""Imported from version 2.7 on, and called only where a configuration asks for fused routing."""

fused_compute_score_for_moe_aux_loss = fused_moe_aux_loss = fused_topk_with_score_function = None

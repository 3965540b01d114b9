"""LoRA for recommenders: one frozen base, a low-rank adapter per segment, trained in one pass, evaluated honestly."""

"""Adapters to PEFT and from it: a folder of two files. PEFT itself is needed for neither way.

    W + scaling * B A        E + scaling * a b        scaling = lora_alpha / r, or / sqrt(r)

    adapter_config.json         r, lora_alpha, use_rslora; rank_pattern and alpha_pattern for the
                                modules that have others; target_modules
    adapter_model.safetensors   base_model.model.PATH.lora_A.weight       A (R, I), of a
                                                                          convolution (R, I, kernel)
                                base_model.model.PATH.lora_B.weight       B (O, R), or (O, R, 1)
                                base_model.model.PATH.lora_embedding_A    a^T (R, N), of all rows
                                base_model.model.PATH.lora_embedding_B    b^T (D, R)

What is said of PEFT here is of its version 0.21.
"""

from reclora.peft.reading import read_peft
from reclora.peft.writing import write_peft

__all__ = ["read_peft", "write_peft"]

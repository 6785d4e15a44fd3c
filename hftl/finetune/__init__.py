"""Fine-tuning on accelerate: one loop for full, LoRA and partial, resumable to the bit.

`train.finetune` walks from a backbone to a trained model; `loop` is the loop itself, and each other file is one
idea that it uses.
"""

"""Fine-tuning with LoRA (lesson 04).

- `recipe`: LoRA's configuration, the Trainer's arguments and learning rate, the
  Trainer itself.
- `train_lora`: the whole of it in one file that imports nothing of ours, to take home.
- `resuming`: run it so that a killed run can go on.
- `tracking`: what is recorded of a run, in MLflow and as a file.
- `memory`: what the forward pass keeps for the backward pass.
- `rehearsals`: small runs beside the one that counts: to overfit, to be killed.
- `adapters`: save and load what was trained.
- `methods`: other ways to fine-tune, compared.
"""

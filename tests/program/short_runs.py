"""The flags of a run that takes seconds with MiniLM."""

FAST = ["--max_train_samples=32", "--max_eval_samples=24", "--batch_size=8"]
FAST += ["--epochs=1", "--steps_per_epoch=6", "--logging_steps=3"]

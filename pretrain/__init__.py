"""Self-supervised pretraining: encoders, objectives, the training run. Imports data, never finetune."""

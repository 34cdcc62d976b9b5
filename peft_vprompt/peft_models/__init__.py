"""What users hold: the PEFT models, saving and loading, the model card."""

"""Programs that the models and the numbers of the documentation come from."""

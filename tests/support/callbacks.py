"""What happens to a training in the middle: a kill, a divergence."""

from transformers import TrainerCallback


class Kill(TrainerCallback):
    """Stands for a kill in the middle of an epoch."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Diverge(TrainerCallback):
    """Makes what is trained not a number in one step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.fill_(float("nan"))

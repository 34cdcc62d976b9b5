"""What `torch.nn.DataParallel` makes of a model."""

from torch import nn


def replica_of(model: nn.Module) -> nn.Module:
    """What `nn.DataParallel` makes of a model for one device: tensors in the place of parameters, connected to them."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    tensors = {parameter: parameter * 1 for parameter in model.parameters()}
    for module, replica in copies.items():
        replica._former_parameters = {}
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else copies[child]
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, tensors[parameter])
                replica._former_parameters[name] = tensors[parameter]
    return copies[model]

"""The way back: a compressed model becomes the dense one again, in place."""

from __future__ import annotations

import copy

from torch import nn

from .surgery import inherit, swap_, unwrapped


def restore_(model: nn.Module, dense: nn.Module) -> tuple[str, ...]:
    """Gives a compressed model the layers and all numbers of a dense one, for whoever holds it: an optimizer does not.

    What was replaced, folded or fused is replaced by a copy of what ``dense`` has there, with the hooks that it has
    now. Dtypes and devices are those of ``dense`` for these layers, and stay for all others.

    Args:
        dense: a model of the same architecture with the weights to go back to, as the model's own code makes it.

    Returns:
        The names of the layers that came back.

    Raises TypeError where either is no module, ValueError where they are not of one architecture; then nothing changes.
    """
    model, dense = unwrapped(model), unwrapped(dense)
    back = _unlike(model, dense, "")
    state = {key: t for key, t in dense.state_dict().items() if not key.startswith(tuple(f"{n}." for n in back))}
    ours = {key: t for key, t in model.state_dict().items() if not key.startswith(tuple(f"{n}." for n in back))}
    if wrong := sorted(state.keys() ^ ours.keys()) or [key for key in state if state[key].shape != ours[key].shape]:
        raise ValueError(f"dense: got another architecture (e.g. {wrong[0]!r}), expected that of the compressed model")
    copies: dict[int, nn.Module] = {}  # a layer under several names stays one
    for name in back:
        layer = dense.get_submodule(name)
        made = copies.setdefault(id(layer), copy.deepcopy(layer))
        parent = model.get_submodule(name.rpartition(".")[0])
        inherit(made.train(parent.training), model.get_submodule(name))
        swap_(model, (name,), made)
    model.load_state_dict(dense.state_dict())
    return tuple(back)


def _unlike(module: nn.Module, dense: nn.Module, name: str) -> list[str]:
    """Where modules differ in class: the outermost."""
    if type(module) is not type(dense) or (isinstance(module, nn.Conv2d) and dense.bias is None is not module.bias):
        if not name:
            raise ValueError(f"dense: got a {type(dense).__name__}, expected a {type(module).__name__}")
        return [name]
    parts, others = dict(module._modules), dict(dense._modules)
    if parts.keys() != others.keys():
        raise ValueError(
            f"dense: got {sorted(others)} in {name or 'the model'}, expected {sorted(parts)} as in the compressed model"
        )
    path = f"{name}." if name else ""
    return [
        found
        for child, part in parts.items()
        if part is not None
        for found in _unlike(part, others[child], path + child)
    ]

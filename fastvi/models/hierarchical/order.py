"""Which stochastic layers depend on which, in the guide and in the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastvi.models.hierarchical.layer import StochasticLayer

DATA = "x"


def name_layers(where: str, layers: Sequence[StochasticLayer]) -> tuple[str, ...]:
    for number, layer in enumerate(layers):
        layer.name = f"h{number + 1}" if layer.name is None else layer.name
    names = tuple(str(layer.name) for layer in layers)
    if len(set(names)) < len(names) or DATA in names:
        raise ValueError(
            f"{where}: expected layers of different names, none of them {DATA!r}, got {names}"
        )
    return names


def check_known(where: str, what: str, given: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown or not given:
        raise ValueError(f"{where}: expected {what} to be among {tuple(known)}, got {tuple(given)}")


def guide_inputs(
    where: str, names: Sequence[str], layers: Sequence[StochasticLayer]
) -> dict[str, tuple[str, ...]]:
    inputs: dict[str, tuple[str, ...]] = {}
    for i, (name, layer) in enumerate(zip(names, layers, strict=True)):
        chain = (names[i - 1],) if i else (DATA,)
        inputs[name] = chain if layer.guide_inputs is None else layer.guide_inputs
        what = f"guide_inputs of layer {name!r}"
        check_known(where, what, inputs[name], (DATA, *names[:i]))
    return inputs


def model_inputs(
    where: str, names: Sequence[str], layers: Sequence[StochasticLayer]
) -> dict[str, tuple[str, ...]]:
    inputs: dict[str, tuple[str, ...]] = {}
    for i, (name, layer) in enumerate(zip(names, layers, strict=True)):
        given = layer.model_inputs
        if layer.model is None:
            if given:
                raise ValueError(
                    f"{where}: expected layer {name!r} to have a model of its model_inputs, {given}"
                )
            inputs[name] = ()
            continue
        if given is None and i + 1 == len(names):
            raise ValueError(
                f"{where}: expected layer {name!r}, the last, to have no model (p depends on no "
                f"layer after it; give prior=...), or model_inputs"
            )
        inputs[name] = (names[i + 1],) if given is None else given
        others = [other for other in names if other != name]
        check_known(where, f"model_inputs of layer {name!r}", inputs[name], others)
    return inputs


def order_of(where: str, inputs: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the layers, each after those that its model depends on."""
    order: list[str] = []
    while len(order) < len(inputs):
        ready = [n for n in inputs if n not in order and set(inputs[n]) <= set(order)]
        if not ready:
            circle = [name for name in inputs if name not in order]
            raise ValueError(
                f"{where}: expected no layer's model to depend on itself, got a circle of {circle}"
            )
        order += ready
    return order

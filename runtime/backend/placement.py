"""Which graph runs on which device, for two of them.

The transformers are nearly all of the model and run at the same time, so each has a device. The other two graphs even
out the memory: the text encoder, as large as a transformer and done before the first step, goes to the unconditional
one's device; the VAE, small in weights and large in activations, to the conditional one's. The velocities meet on the
host, where the latents are: (B, N, C) float32, 2 MB at 1024 x 1024. Engines are chosen, and their memory is planned,
for each device by itself, so the GPUs may differ where the bundle has engines for both.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from runtime.backend.choice import Choice
from runtime.constants import NEGATIVE_GRAPH
from runtime.errors import RequestError, shown

_SECOND = ("dit_uncond", "text_encoder", NEGATIVE_GRAPH)


def parse_devices(text: str) -> tuple[str, str]:
    """Read two devices: ``0,1`` for the GPUs of these numbers, or names such as ``cuda:0,cuda:1`` and ``cpu,cpu``.

    Raises:
        RequestError: there are not two of them, or they are the same GPU.
    """
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(names):
        raise RequestError(f"devices is {shown(text)}, wanted two, as in 0,1")
    first, second = (f"cuda:{int(name)}" if name.isdecimal() else name for name in names)
    check_devices((first, second))
    return first, second


def check_devices(devices: tuple[str, str]) -> None:
    """Raise RequestError unless these are two devices; the CPU may be both, for trying out."""
    if len(devices) != 2:
        raise RequestError(f"devices has {len(devices)} entries, wanted 2")
    first, second = ("cuda:0" if name == "cuda" else name for name in devices)
    if first == second and first != "cpu":
        raise RequestError(f"devices is {','.join(devices)}, which is one GPU twice; wanted two")


def check_two(devices: tuple[str, str], device: str, graphs: Sequence[str]) -> None:
    """Raise RequestError unless two devices go with the other choices and with the graphs that are loaded."""
    check_devices(devices)
    if device != "auto":
        raise RequestError(f"devices {','.join(devices)} and device {device} exclude each other")
    if "dit_uncond" not in graphs and NEGATIVE_GRAPH not in graphs:
        raise RequestError(f"devices {','.join(devices)} are for two transformers, and only one is loaded")


def place(graphs: Iterable[str], devices: tuple[str, str]) -> dict[str, str]:
    """The device of each graph; one device is the same one twice."""
    return {name: devices[name in _SECOND] for name in graphs}


def stage_of(graph: str) -> str:
    """The bundle's graph that is opened under a name."""
    return "dit_cond" if graph == NEGATIVE_GRAPH else graph


def graphs_on(placed: Mapping[str, str]) -> dict[str, list[str]]:
    """By device, its graphs."""
    return {device: [name for name, at in placed.items() if at == device] for device in dict.fromkeys(placed.values())}


def together(choices: Mapping[str, Choice], placed: Mapping[str, str], devices: tuple[str, str]) -> Choice:
    """The choices for two devices as one, for the user and for what is the same on both.

    Args:
        choices: by device; either all of them have engines or none.
        placed: the device of each graph.
        devices: as they were asked for.

    Returns:
        A choice whose engines are each graph's own; it has no memory plan, which each device has for itself.
    """
    chosen = [choices[device] for device in dict.fromkeys(devices)]
    sets = [choice.engines for choice in chosen if choice.engines is not None]
    engines = None
    if sets:
        targets = tuple(dict.fromkeys(target for one in sets for target in one.targets))
        found = {name: choices[at].engines for name, at in placed.items()}
        graphs = {name: own.graphs[stage_of(name)] for name, own in found.items() if own is not None}
        engines = replace(sets[0], targets=targets, graphs=graphs)
    reasons = dict.fromkeys(choice.reason for choice in chosen)
    backend = " and ".join(dict.fromkeys(choice.backend for choice in chosen))
    return Choice(backend, ",".join(devices), "; ".join(reasons), engines)

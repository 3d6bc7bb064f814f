"""From a bundle's directory to graphs that run: which graphs, on which device, by which backend."""

from collections.abc import Sequence
from pathlib import Path

from runtime.backend.limits import check_limits
from runtime.backend.opening import Opened, choose_placed, open_placed
from runtime.backend.placement import check_two, place, together
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import Manifest
from runtime.constants import NEGATIVE_GRAPH, TILE_GRAPHS
from runtime.errors import BundleError
from runtime.plan import Plan

_MORE_VAE_GRAPHS = ("vae_encoder", *TILE_GRAPHS.values())


def graphs_to_load(
    directory: Path, manifest: Manifest, vae_graphs: Sequence[str] | None, unconditional: bool, negative: bool
) -> list[str]:
    """Names of the graphs to load; the arguments are those of `Pipeline.load`.

    Raises:
        BundleError: the bundle lacks one of them.
    """
    if vae_graphs is None:
        vae_graphs = ["vae_decoder", *(name for name in _MORE_VAE_GRAPHS if name in manifest.stages)]
    wanted = ["text_encoder", "dit_cond", *vae_graphs]
    if unconditional and "dit_uncond" in manifest.stages:
        wanted.append("dit_uncond")
    if missing := [name for name in wanted if name not in manifest.stages]:
        raise BundleError(f"the bundle {directory} has no graph {missing[0]}, which generation needs")
    return [*wanted, NEGATIVE_GRAPH] if negative else wanted


def open_bundle(
    directory: Path,
    manifest: Manifest,
    graphs: Sequence[str],
    backend: str,
    device: str,
    memory: str,
    threads: int | None,
    verify: bool,
    *,
    plans: Sequence[Plan],
    devices: tuple[str, str] | None,
) -> Opened:
    """Choose what runs the graphs, check the plans' sizes and the bundle's files, and open the graphs.

    The arguments and what is raised are those of `Pipeline.load`.
    """
    if devices is not None:
        check_two(devices, device, graphs)
    # One device is the same one twice.
    placed = place(graphs, devices or (device, device))
    choices = choose_placed(manifest, placed, backend, memory)
    choice = together(choices, placed, devices) if devices else choices[device]
    if choice.engines:
        for plan in plans:
            check_limits(choice.engines, graphs, plan)
    check_files(directory, manifest.files, hashes=verify)
    return open_placed(manifest, directory, placed, choices, choice, threads)

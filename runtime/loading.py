"""From a bundle's directory to graphs that run: which graphs, on which device, by which backend."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.backend.choice import Choice
from runtime.backend.limits import check_limits
from runtime.backend.opening import Opened, choose_placed, open_placed
from runtime.backend.placement import check_two, place, stage_of, together
from runtime.bundle.integrity import GRAPHS, check_files
from runtime.bundle.manifest import Manifest
from runtime.bundle.verified import Verified
from runtime.constants import NEGATIVE_GRAPH, TILE_GRAPHS
from runtime.errors import BundleError, RequestError, shown
from runtime.plan import Plan
from runtime.user_cache import cache_directory

VERIFY = ("auto", "full", "off")
"""How the bundle's files are checked: the hashes of those that are used, unless they were verified before and have not
changed since; the hashes of all files; or only sizes."""
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
    verify: str,
    plans: Sequence[Plan],
    devices: tuple[str, str] | None,
    most: int | None,
    cuda_graphs: bool = True,
) -> Opened:
    """Choose what runs the graphs, check the plans' sizes and the bundle's files, and open the graphs.

    The arguments and what is raised are those of `Pipeline.load`; `cuda_graphs` is that of `open_graphs`.
    """
    if verify not in VERIFY:
        raise RequestError(f"verify is {shown(verify)}, wanted one of {', '.join(VERIFY)}")
    if most is not None and most < 1:
        raise RequestError(f"max_memory is {shown(most)}, wanted bytes above 0")
    if devices is not None:
        check_two(devices, device, graphs)
    # One device is the same one twice.
    placed = place(graphs, devices or (device, device))
    choices = choose_placed(manifest, placed, backend, memory, most, plans)
    choice = together(choices, placed, devices) if devices else choices[device]
    if choice.engines:
        for plan in plans:
            check_limits(choice.engines, graphs, plan)
    _check(directory, manifest, placed, choices, verify)
    return open_placed(manifest, directory, placed, choices, choice, threads, most, cuda_graphs)


def _check(
    directory: Path, manifest: Manifest, placed: Mapping[str, str], choices: Mapping[str, Choice], verify: str
) -> None:
    """Check the bundle's files; see `VERIFY`."""
    if verify != "auto":
        check_files(directory, manifest.files, hashes=verify == "full")
        return
    # Sizes first: what is missing is not looked into.
    check_files(directory, manifest.files, hashes=False)
    verified = Verified(cache_directory(), directory)
    check_files(directory, manifest.files, used=used_files(directory, manifest, placed, choices), verified=verified)


def used_files(
    directory: Path, manifest: Manifest, placed: Mapping[str, str], choices: Mapping[str, Choice]
) -> set[str]:
    """Paths of the files that the graphs of `placed` are read from, and of the tokenizer.

    A graph has the names of the files with its weights inside, as they are.
    """
    used = {manifest.prompt.tokenizer}
    onnx = {graph.onnx for graph in manifest.graphs.values()}
    weights = [path for path in manifest.files if path.startswith(f"{GRAPHS}/") and path not in onnx]
    for graph, device in placed.items():
        stage, engines = stage_of(graph), choices[device].engines
        if engines is not None:
            used.add(engines.graphs[stage].plan)
            continue
        used.add(manifest.graphs[stage].onnx)
        content = (directory / manifest.graphs[stage].onnx).read_bytes()
        used.update(path for path in weights if _name(path) in content)
    return used


def _name(path: str) -> bytes:
    """A file's name as it stands in a graph that reads it; in a manifest that somebody made up it may be no UTF-8."""
    return path.rpartition("/")[2].encode("utf-8", "surrogatepass")

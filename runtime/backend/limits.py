"""What sizes the engines of a bundle take, and the memory for them: from the manifest, before a graph is loaded."""

from collections.abc import Iterable, Mapping, Sequence

from runtime.bundle.graph_specs import EngineSet, EngineSpec
from runtime.errors import RequestError
from runtime.plan import Plan
from runtime.tensorrt.profiles import choose_profile, profiles_text, range_text

_MEANINGS = {
    "H": "the picture's height in pixels",
    "W": "the picture's width in pixels",
    "grid_h": "the picture's height in image tokens",
    "grid_w": "the picture's width in image tokens",
    "N": "the number of image tokens",
    "T": "the number of text tokens",
    "L": "the number of text and image tokens together",
}
"""Named sizes of the graphs, in the order in which they are checked: what a user chose comes first."""
_TEXT = ("T",)
_TILES = {"tile_H": "height", "tile_W": "width", "tile_h": "height", "tile_w": "width"}
"""Named sizes of the graphs for tiles; those of thumbnails are no other."""


def check_limits(engines: EngineSet, stages: Iterable[str], plan: Plan) -> None:
    """Raise RequestError unless engines take the plan's sizes: those of `stages`, of the VAE only what it needs.

    The message has the value, the range, and what to do. Any number of pictures runs, in batches that fit.
    """
    if plan.unconditional == "conditional" and plan.guided:
        raise RequestError(
            f"--unconditional conditional runs the conditional transformer without text, and the {engines.label} take "
            "1 text token or more; choose --unconditional graph or off, or --backend ort"
        )
    needed = _needed(stages, plan)
    for text in _texts(plan):
        _check_sizes(engines, needed, plan, text)
    if plan.vae_tile is not None:
        for stage in needed:
            _check_tile(engines, stage, plan, plan.vae_tile)


def activation_bytes(engines: EngineSet, stages: Iterable[str], plans: Sequence[Plan]) -> dict[str, int]:
    """Device memory that each stage needs beside its weights, in the profiles in which the plans run it.

    A stage that none of them runs needs nothing. {} without plans: then any profile may run.
    """
    if not plans:
        return {}
    needs = dict.fromkeys(stages, 0)
    for plan in plans:
        tile = {} if plan.vae_tile is None else {name: _tile_side(name, plan, plan.vae_tile) for name in _TILES}
        for stage in _needed(needs, plan):
            spec = engines.graphs[stage]
            for text in _texts(plan):
                profile = choose_profile(spec, _sizes(plan, text) | tile)
                # None is refused when the sizes are checked.
                taken = spec.activation_bytes if profile is None else spec.profiles[profile].activation_bytes
                needs[stage] = max(needs[stage], taken)
    return needs


def _needed(stages: Iterable[str], plan: Plan) -> list[str]:
    """The stages that a plan runs: of the VAE only what it needs."""
    return [stage for stage in stages if not stage.startswith("vae_") or stage in plan.vae_graphs]


def _texts(plan: Plan) -> list[int]:
    """Numbers of tokens of the prompt, and of the negative one if there is one."""
    return [len(tokens) for tokens in (plan.token_ids, plan.negative_token_ids) if tokens]


def _sizes(plan: Plan, text: int) -> dict[str, int]:
    """The named sizes of a picture with `text` tokens."""
    rows, columns = plan.grid
    tokens = rows * columns
    sizes = {"H": plan.height, "W": plan.width, "grid_h": rows, "grid_w": columns, "N": tokens, "T": text}
    return sizes | {"L": tokens + text}


def _tile_side(name: str, plan: Plan, tile: int) -> int:
    """A named size of a tile, which is as large as asked for, or as the picture where that is smaller."""
    pixels = min(tile, plan.height if _TILES[name] == "height" else plan.width)
    return pixels // (plan.pixels_per_token if name.islower() else 1)


def _check_sizes(engines: EngineSet, stages: Iterable[str], plan: Plan, text: int) -> None:
    """The sizes of a picture with `text` tokens of its prompt, or of its negative one."""
    sizes = _sizes(plan, text)
    for name, meaning in _MEANINGS.items():
        for stage in stages:
            spec = engines.graphs[stage]
            if _outside(spec, name, sizes[name]):
                raise RequestError(_refusal(engines, stage, meaning, name, sizes[name], plan))
    for stage in stages:
        _check_together(engines, stage, sizes, f"a picture of {plan.width}x{plan.height} with {text} text tokens")


def _check_tile(engines: EngineSet, stage: str, plan: Plan, tile: int) -> None:
    spec = engines.graphs[stage]
    sizes = {name: _tile_side(name, plan, tile) for name in _TILES}
    for name, side in _TILES.items():
        unit = plan.pixels_per_token if name.islower() else 1
        if _outside(spec, name, sizes[name]):
            ends = [(limits.minimum * unit, limits.maximum * unit) for limits in spec.ranges(name)]
            taken = " or ".join(dict.fromkeys(f"{minimum} to {maximum}" for minimum, maximum in ends))
            raise RequestError(
                f"the {side} of a tile is {sizes[name] * unit} pixels, and the {stage} of the {engines.label} takes "
                f"{taken}; choose another --vae-tile, or --backend ort"
            )
    _check_together(engines, stage, sizes, f"a tile of {tile} pixels of a picture of {plan.width}x{plan.height}")


def _outside(spec: EngineSpec, name: str, value: int) -> bool:
    """Whether no profile takes this value of a size that the engine has."""
    ranges = spec.ranges(name)
    return bool(ranges) and not any(value in limits for limits in ranges)


def _check_together(engines: EngineSet, stage: str, sizes: Mapping[str, int], what: str) -> None:
    """Refuse sizes that are taken by one profile each, but not together by any."""
    spec = engines.graphs[stage]
    if choose_profile(spec, sizes) is None:
        raise RequestError(
            f"{what} fits no profile of the {stage} of the {engines.label}, which take {profiles_text(spec, sizes)}; "
            "build them with another --profile, or use --backend ort"
        )


def _refusal(engines: EngineSet, stage: str, meaning: str, name: str, value: int, plan: Plan) -> str:
    spec = engines.graphs[stage]
    text = f"{meaning} is {value}, and the {stage} of the {engines.label} takes {range_text(spec, name)}"
    too_small = all(value < limits.minimum for limits in spec.ranges(name))
    too_large = all(value > limits.maximum for limits in spec.ranges(name))
    if name in _TEXT:
        return f"{text}; use a {'longer' if too_small else 'shorter'} prompt, or --backend ort"
    option = "--max-size" if too_large else "--min-size" if too_small else "--profile"
    return (
        f"a picture of {plan.width}x{plan.height} is outside of what the engines were built for: {text}; build them "
        f"with another {option}, or use --backend ort"
    )

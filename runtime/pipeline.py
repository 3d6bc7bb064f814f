"""A prompt in, a picture out: the stages of a bundle in order.

`Pipeline.generate` is the whole line; `encode`, `denoise` and `decode` are its parts, for callers that want previews,
early stops or their own noise.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backend import Graph, graph_opener
from runtime.denoise import NonFiniteError, Velocity, denoise
from runtime.integrity import check_files
from runtime.manifest import Manifest, read_manifest
from runtime.noise import SEED_LIMIT, randn
from runtime.prompt import PromptEncoder
from runtime.rope import image_positions, rope_tables, text_positions
from runtime.schedule import Sampling, Step, round_to_bfloat16, sampling, schedule

UNCONDITIONAL = ("graph", "conditional", "off")
MAX_IMAGES = 64
_RANDOM_SEEDS = 2**32


@dataclass(frozen=True)
class Used:
    """What a picture was made with; enough to make it again."""

    prompt: str
    width: int
    height: int
    seed: int | None
    """None when the caller gave the noise."""
    num_images: int
    sampling: Sampling
    unconditional: str
    text_tokens: int
    bundle: str
    """Name of the checkpoint in the manifest."""
    precision: str
    backend: str
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Generated:
    """Pictures and what they were made with."""

    images: np.ndarray
    """(B, H, W, 3) uint8, RGB."""
    used: Used
    seconds: float
    """Wall time of `Pipeline.generate`."""


class Pipeline:
    """The loaded stages of a bundle."""

    def __init__(
        self, manifest: Manifest, graphs: dict[str, Graph], prompt: PromptEncoder, backend: str, device: str
    ) -> None:
        self.manifest, self.graphs, self.prompt = manifest, graphs, prompt
        self.backend, self.device = backend, device

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        backend: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
        verify: bool = True,
        unconditional: bool = True,
    ) -> "Pipeline":
        """Load a bundle.

        Args:
            directory: the bundle.
            backend: ``auto`` or ``ort``.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            threads: CPU threads for a graph; None for one per core.
            verify: compare the SHA-256 of every file with the manifest, not only its size.
            unconditional: load the unconditional transformer, if the bundle has one. Pictures without guidance do
                not need it, and it is as large as the conditional one.

        Raises:
            FileNotFoundError: there is no bundle in `directory`.
            BundleError: the bundle is damaged.
            RuntimeError: the backend or device is not there, or cannot run this bundle.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        wanted = ["text_encoder", "dit_cond", "vae_decoder"]
        if unconditional and "dit_uncond" in manifest.graphs:
            wanted.append("dit_uncond")
        if missing := [name for name in wanted if name not in manifest.graphs]:
            raise ValueError(f"the bundle {directory} has no graph {missing[0]}, which generation needs")
        check_files(directory, manifest.files, hashes=verify)
        open_graph = graph_opener(backend, device, directory, threads)
        graphs = {name: open_graph(name, manifest.graphs[name]) for name in wanted}
        encoder = PromptEncoder(directory / manifest.prompt.tokenizer, manifest.prompt)
        return cls(manifest, graphs, encoder, "ort", device)

    def encode(self, token_ids: np.ndarray) -> np.ndarray:
        """Text features (1, T, E) float32 for token ids (1, T) int64; NonFiniteError if they hold NaN or infinity."""
        text = self.graphs["text_encoder"](input_ids=token_ids)
        if not np.isfinite(text).all():
            raise NonFiniteError("the text encoder gave NaN or infinite values")
        return text

    def denoise(
        self,
        text: np.ndarray,
        noise: np.ndarray,
        width: int,
        height: int,
        steps: Sequence[Step],
        unconditional: str = "graph",
    ) -> Iterator[np.ndarray]:
        """Yield the latents (B, N, C) float32 after each step.

        Args:
            text: (1, T, E) float32 from `encode`.
            noise: (B, N, C) float32, N = tokens of a `width` x `height` picture, row-major.
            width: of the picture, pixels.
            height: of the picture, pixels.
            steps: from `runtime.schedule.schedule`.
            unconditional: ``graph`` for the unconditional transformer, ``conditional`` for the conditional one on
                image tokens alone (what DiffSynth-Studio does when the other is absent), ``off`` for none.
        """
        grid = self._grid(width, height)
        if noise.shape[1:] != (grid[0] * grid[1], self.manifest.latent_channels):
            raise ValueError(
                f"the noise has shape {noise.shape}, wanted (B, {grid[0] * grid[1]}, {self.manifest.latent_channels})"
            )
        text = np.repeat(text, len(noise), axis=0)
        conditional = self._velocity("dit_cond", grid, text)
        free: Velocity | None = None
        if unconditional == "graph" and "dit_uncond" in self.graphs:
            free = self._velocity("dit_uncond", grid, None)
        elif unconditional == "conditional":
            free = self._velocity("dit_cond", grid, text[:, :0])
        return denoise(conditional, free, noise, steps)

    def decode(self, latents: np.ndarray, width: int, height: int) -> np.ndarray:
        """Pictures (B, height, width, 3) uint8 from latents (B, N, C) float32."""
        decoder = self.graphs["vae_decoder"]
        grid = self._grid(width, height)
        # One at a time: the decoder's activations are the largest of the whole line.
        return np.concatenate([decoder(latents=one.reshape(1, *grid, -1)) for one in latents])

    def generate(
        self,
        prompt: str,
        *,
        width: int | None = None,
        height: int | None = None,
        preset: str | None = None,
        steps: int | None = None,
        guidance: float | Sequence[float] | None = None,
        mu: float | None = None,
        std: float | None = None,
        seed: int | None = None,
        num_images: int = 1,
        unconditional: str = "graph",
        noise: np.ndarray | None = None,
        on_step: Callable[[int, int, np.ndarray], None] | None = None,
    ) -> Generated:
        """Make pictures for a prompt.

        Args:
            prompt: plain text or an Ideogram 4 JSON caption.
            width: pixels; None for the bundle's default size.
            height: pixels; None for the bundle's default size.
            preset: one of `runtime.schedule.PRESETS`; None for the bundle's default, unless `steps` is given.
            steps: number of steps instead of a preset, with guidance 7, mu 0 and std 1.5 unless given.
            guidance: one weight for all steps, or one for each; overrides the preset's.
            mu: mean of the schedule; overrides the preset's.
            std: standard deviation of the schedule; overrides the preset's.
            seed: of the start noise, as in ``torch.Generator("cpu").manual_seed``; None for a random one.
            num_images: pictures from one noise draw of that batch size.
            unconditional: ``graph``, ``conditional`` or ``off``; see `denoise`. ``off`` sets all guidance to 1.
            noise: (num_images, N, C) float32 instead of a seed.
            on_step: called after each step with the steps done, all steps, and the latents.

        Raises:
            ValueError: an argument is out of range, or the bundle cannot do what is asked for.
            NonFiniteError: a graph gave NaN or infinity.
        """
        started = time.perf_counter()
        width, height = width or self.manifest.sizes.default, height or self.manifest.sizes.default
        self.manifest.sizes.check(width, height)
        plan = self._sampling(preset, steps, guidance, mu, std, unconditional)
        if not 1 <= num_images <= MAX_IMAGES:
            raise ValueError(f"num_images is {num_images}, wanted 1 to {MAX_IMAGES}")
        token_ids = self.prompt.encode(prompt)
        grid = self._grid(width, height)
        if noise is None:
            seed = secrets.randbelow(_RANDOM_SEEDS) if seed is None else seed
            if not 0 <= seed < SEED_LIMIT:
                raise ValueError(f"seed is {seed}, wanted an integer from 0 to 2**64 - 1")
            noise = randn((num_images, grid[0] * grid[1], self.manifest.latent_channels), seed)
        elif seed is not None or len(noise) != num_images:
            raise ValueError(f"noise for {len(noise)} pictures and seed {seed}; wanted no seed and {num_images} pictures")
        text = self.encode(token_ids)
        plan_steps = schedule(plan, width, height)
        latents = noise
        for done, latents in enumerate(self.denoise(text, noise, width, height, plan_steps, unconditional), start=1):
            if on_step:
                on_step(done, len(plan_steps), latents)
        images = self.decode(latents, width, height)
        used = Used(
            prompt, width, height, seed, num_images, plan, unconditional, token_ids.shape[1],
            self.manifest.name, self.manifest.precision, self.backend, self.device,
        )  # fmt: skip
        return Generated(images, used, time.perf_counter() - started)

    def _sampling(
        self,
        preset: str | None,
        steps: int | None,
        guidance: float | Sequence[float] | None,
        mu: float | None,
        std: float | None,
        unconditional: str,
    ) -> Sampling:
        if unconditional not in UNCONDITIONAL:
            raise ValueError(f"unconditional is {unconditional!r}, wanted one of {', '.join(UNCONDITIONAL)}")
        if unconditional == "off":
            if guidance is not None:
                raise ValueError(f"guidance {guidance} needs an unconditional pass, and unconditional is 'off'")
            guidance = 1.0
        if preset is None and steps is None:
            preset = self.manifest.default_preset
        weights = tuple(guidance) if isinstance(guidance, Sequence) else guidance
        plan = sampling(preset, steps, weights, mu, std)
        if unconditional == "graph" and "dit_uncond" not in self.graphs and any(g != 1 for g in plan.guidance):
            raise ValueError(
                "no unconditional transformer is loaded from this bundle, which guidance other than 1 needs; choose guidance 1 "
                "(--unconditional off) or the conditional one on image tokens only (--unconditional conditional)"
            )
        return plan

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        return height // self.manifest.sizes.multiple, width // self.manifest.sizes.multiple

    def _velocity(self, name: str, grid: tuple[int, int], text: np.ndarray | None) -> Velocity:
        """Bind everything that stays the same between steps to the graph."""
        length = 0 if text is None else text.shape[1]
        positions = np.concatenate((text_positions(length), image_positions(*grid)))
        rope = self.manifest.rope
        cosines, sines = rope_tables(positions, rope.head_dim, rope.theta, rope.sections)
        feeds = {"rope_cos": cosines, "rope_sin": sines} | ({} if text is None else {"text": text})
        return partial(self._run_velocity, self.graphs[name], feeds)

    def _run_velocity(
        self, graph: Graph, feeds: dict[str, np.ndarray], latents: np.ndarray, t: np.float32
    ) -> np.ndarray:
        if self.manifest.timestep_dtype == "bfloat16":
            t = round_to_bfloat16(t)
        return graph(latents=latents, timestep=np.full(len(latents), t, np.float32), **feeds)

"""A prompt in, a picture out: the stages of a bundle in order.

`Pipeline.generate` is the whole line; `encode`, `encode_image`, `denoise` and `decode` are its parts, for callers that
want early stops or their own noise.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backend.limits import check_limits
from runtime.backend.opening import Opened, choose_backend, choose_placed, open_graphs, open_placed
from runtime.backend.placement import check_two, place, together
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import BundleError, EngineSet, Manifest, read_manifest
from runtime.constants import TILE_GRAPHS
from runtime.graph import Graph
from runtime.image import vae
from runtime.image.init_image import make_source
from runtime.image.inpaint import keep_outside, noised, paste
from runtime.plan import Plan, make_plan
from runtime.prompt.caption import Caption
from runtime.prompt.feature_cache import FeatureCache
from runtime.prompt.tokens import PromptEncoder
from runtime.sampling.denoise import Blend, NonFiniteError, Velocity, denoise
from runtime.sampling.guidance import UnconditionalPasses
from runtime.sampling.noise import randn
from runtime.sampling.schedule import Step
from runtime.sampling.velocity import bind

OnStep = Callable[[int, int, np.ndarray], None]
"""Called after each step with the steps done, the number of steps, and the latents (B, N, C) float32."""

_MORE_VAE_GRAPHS = ("vae_encoder", *TILE_GRAPHS.values())


@dataclass(frozen=True)
class Generated:
    """Pictures and what they were made with."""

    images: np.ndarray
    """(B, H, W, 3) uint8, RGB."""
    used: dict[str, Any]
    """Everything that was used, the random seed included, as plain values."""
    seconds: float
    """Wall time, loading not included."""


class Pipeline:
    """The loaded stages of a bundle."""

    def __init__(
        self,
        manifest: Manifest,
        graphs: dict[str, Graph],
        prompt: PromptEncoder,
        backend: str,
        device: str,
        opened: Opened | None = None,
        concurrent: bool = False,
    ) -> None:
        """`concurrent`: the two transformers run at the same time, each in a thread."""
        self.manifest, self.graphs, self.prompt = manifest, graphs, prompt
        self.backend, self.device, self.concurrent = backend, device, concurrent
        self.features = FeatureCache()
        self.opened = opened
        """Where `load` got the graphs from: what was chosen and why, and how to free it."""

    @property
    def engines(self) -> EngineSet | None:
        """The engines that run; None for ONNX Runtime and others, which take any size."""
        return self.opened.choice.engines if self.opened else None

    @property
    def where(self) -> str:
        """Backend and device, and why them, for the user."""
        return f"{self.backend} ({self.device})" + (f": {self.opened.choice.reason}" if self.opened else "")

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        backend: str = "auto",
        device: str = "auto",
        memory: str = "auto",
        threads: int | None = None,
        verify: bool = True,
        unconditional: bool = True,
        plans: Sequence[Plan] = (),
        vae_graphs: Sequence[str] | None = None,
        devices: tuple[str, str] | None = None,
    ) -> "Pipeline":
        """Load a bundle.

        Args:
            directory: the bundle.
            backend: ``ort``, ``rtx``, ``tensorrt``, or ``auto``: engines if the bundle has some that this machine can
                run, else ONNX Runtime. `opened.choice` says what was taken and why.
            device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: the first GPU for engines, the CPU for ONNX Runtime.
            memory: which engines are on the GPU together: ``resident``, ``staged``, or ``auto`` for what fits; see
                `runtime.tensorrt.memory_plan`.
            threads: CPU threads for a graph of ONNX Runtime; None for one per core.
            verify: compare the SHA-256 of every file with the manifest, not only its size.
            unconditional: load the unconditional transformer, if the bundle has one. Pictures without guidance do
                not need it, and it is as large as the conditional one.
            plans: what will be run, if it is known: sizes that engines do not take are found before loading.
            vae_graphs: names of the VAE's graphs to load, such as `Plan.vae_graphs`; None for all of them. Only
                pictures to start from need the encoder, and only large ones the graphs for tiles.
            devices: two devices instead of `device`, one for each transformer; see `runtime.backend.placement`.

        Raises:
            FileNotFoundError: there is no bundle in `directory`.
            BundleError: the bundle is damaged.
            ValueError: an argument is none of those above, the engines do not take a plan's sizes, or there are two
                devices and not two transformers.
            RuntimeError: the backend or device is not there, or cannot run this bundle.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        if vae_graphs is None:
            vae_graphs = ["vae_decoder", *(name for name in _MORE_VAE_GRAPHS if name in manifest.stages)]
        wanted = ["text_encoder", "dit_cond", *vae_graphs]
        if unconditional and "dit_uncond" in manifest.stages:
            wanted.append("dit_uncond")
        if missing := [name for name in wanted if name not in manifest.stages]:
            raise BundleError(f"the bundle {directory} has no graph {missing[0]}, which generation needs")
        encoder = PromptEncoder(directory / manifest.prompt.tokenizer, manifest.prompt)
        if devices is None:
            choice = choose_backend(manifest, wanted, backend, device, memory)
        else:
            check_two(devices, device, wanted)
            placed = place(wanted, devices)
            choices = choose_placed(manifest, placed, backend, memory)
            choice = together(choices, placed, devices)
        if choice.engines:
            for plan in plans:
                check_limits(choice.engines, wanted, plan)
        check_files(directory, manifest.files, hashes=verify)
        if devices is None:
            opened = open_graphs(manifest, directory, wanted, choice, threads)
        else:
            opened = open_placed(manifest, directory, placed, choices, choice, threads)
        return cls(
            manifest, opened.graphs, encoder, choice.backend, choice.device, opened, concurrent=devices is not None
        )

    def close(self) -> None:
        """Free the graphs' memory on the GPU, and keep what the backend compiled. Nothing can be made afterwards."""
        if self.opened:
            self.opened.close()

    def encode(self, token_ids: np.ndarray) -> np.ndarray:
        """Text features (1, T, E) float32 for token ids (1, T) int64; NonFiniteError if they hold NaN or infinity.

        Those of the last prompts are kept, so the array is read-only.
        """
        return self.features.get(token_ids, self._encode)

    def _encode(self, token_ids: np.ndarray) -> np.ndarray:
        text = self.graphs["text_encoder"](input_ids=token_ids)
        if not np.isfinite(text).all():
            raise NonFiniteError("the text encoder gave NaN or infinite values")
        return text

    def denoise(
        self,
        text: np.ndarray,
        noise: np.ndarray,
        grid: tuple[int, int],
        steps: Sequence[Step],
        unconditional: str = "graph",
        blend: Blend | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the latents (B, N, C) float32 after each step.

        Args:
            text: (1, T, E) float32 from `encode`.
            noise: (B, N, C) float32, N image tokens in row-major order; a picture's noised latents to
                start from one.
            grid: rows and columns of image tokens.
            steps: from `runtime.sampling.schedule.schedule`, or a plan's.
            unconditional: one of `runtime.plan.UNCONDITIONAL`.
            blend: see `runtime.sampling.denoise.denoise`.
        """
        rows, columns = grid
        if noise.shape[1:] != (rows * columns, self.manifest.latent_channels):
            raise ValueError(
                f"the noise has shape {noise.shape}, wanted (B, {rows * columns}, {self.manifest.latent_channels})"
            )
        text = np.repeat(text, len(noise), axis=0)
        conditional = bind(self.graphs["dit_cond"], self.manifest, grid, text)
        free: Velocity | None = None
        if unconditional == "graph" and "dit_uncond" in self.graphs:
            free = bind(self.graphs["dit_uncond"], self.manifest, grid, None)
        elif unconditional == "conditional":
            free = bind(self.graphs["dit_cond"], self.manifest, grid, text[:, :0])
        return self._integrate(conditional, free, noise, steps, blend)

    def decode(self, latents: np.ndarray, grid: tuple[int, int], tile: int | None = None) -> np.ndarray:
        """Pictures (B, H, W, 3) uint8 from latents (B, N, C) float32 on a grid of N = rows * columns tokens.

        `tile` is the side of tiles in pixels, None for the whole picture at once; see `runtime.image.tiling`.
        """
        # One at a time: the decoder's activations are the largest of the whole line.
        return np.concatenate([vae.decode(self.graphs, self.manifest, one.reshape(*grid, -1), tile) for one in latents])

    def encode_image(self, pixels: np.ndarray, tile: int | None = None) -> np.ndarray:
        """Latents (1, N, C) float32 of a picture (H, W, 3) uint8, the mean of the VAE's posterior; `tile` as above.

        Raises:
            ValueError: the VAE's encoder is not loaded.
            NonFiniteError: it gave NaN or infinity.
        """
        return vae.encode(self.graphs, self.manifest, pixels, tile)

    def generate(
        self,
        prompt: str | Caption,
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
        image: str | Path | np.ndarray | None = None,
        strength: float | None = None,
        fit: str | None = None,
        mask: str | Path | np.ndarray | None = None,
        feather: int | None = None,
        guidance_interval: tuple[float, float] | None = None,
        uncond_every: int = 1,
        vae_tile: str | int = "auto",
        noise: np.ndarray | None = None,
        on_step: OnStep | None = None,
    ) -> Generated:
        """Make pictures for a prompt.

        Args:
            prompt: a caption, or text that the model gets as it is: plain text or a JSON caption.
            width: pixels; None for the image's size, or the bundle's default.
            height: as `width`.
            preset: one of `runtime.sampling.schedule.PRESETS`; None for the bundle's default, unless `steps` is given.
            steps: number of steps instead of a preset, with guidance 7, mu 0 and std 1.5 unless given.
            guidance: one weight for all steps, or one for each; overrides the preset's.
            mu: mean of the schedule; overrides the preset's.
            std: standard deviation of the schedule; overrides the preset's.
            seed: of the start noise, as in ``torch.Generator("cpu").manual_seed``; None for a random one.
            num_images: pictures from one noise draw of that batch size.
            unconditional: ``graph``, ``conditional`` or ``off`` (all guidance is 1); see `runtime.plan`.
            image: a picture to start from, a file or (H, W, 3) uint8; the other options for it are in
                `runtime.image.init_image.Source`.
            strength: from 0, the picture itself, to 1, almost nothing of it.
            fit: ``crop``, ``pad`` or ``stretch``, for a picture of another aspect ratio.
            mask: a file or (H, W) bool; white is painted anew, the rest stays.
            feather: pixels over which the painted part fades into the kept one.
            guidance_interval: first and last time at which guidance applies; see `runtime.sampling.guidance`.
            uncond_every: guided steps for each unconditional pass.
            vae_tile: ``auto``, ``off`` or pixels; see `runtime.image.tiling`.
            noise: (num_images, N, C) float32 to start from instead of the seed's.
            on_step: called after each step.

        Raises:
            FileNotFoundError: there is no such image or mask.
            ValueError: an argument is out of range, or the bundle cannot do what is asked for.
            NonFiniteError: a graph gave NaN or infinity.
        """
        plan = make_plan(
            self.manifest,
            self.prompt,
            str(prompt),
            width=width,
            height=height,
            preset=preset,
            steps=steps,
            guidance=guidance,
            mu=mu,
            std=std,
            seed=seed,
            num_images=num_images,
            unconditional=unconditional,
            passes=UnconditionalPasses(guidance_interval, uncond_every),
            vae_tile=vae_tile,
            source=make_source(image, strength, fit, mask, feather),
        )
        return self.run(plan, noise, on_step)

    def run(self, plan: Plan, noise: np.ndarray | None = None, on_step: OnStep | None = None) -> Generated:
        """Make the pictures of a plan; `generate` says what may be raised."""
        started = time.perf_counter()
        if plan.needs_unconditional_graph and "dit_uncond" not in self.graphs:
            raise ValueError("the pipeline was loaded without the unconditional transformer, which guidance needs")
        if self.engines:
            check_limits(self.engines, self.graphs, plan)
        if noise is None:
            rows, columns = plan.grid
            noise = randn((plan.num_images, rows * columns, self.manifest.latent_channels), plan.seed)
        elif len(noise) != plan.num_images:
            raise ValueError(f"the noise is for {len(noise)} pictures, wanted {plan.num_images}")
        text = self.encode(np.array([plan.token_ids], dtype=np.int64))
        steps = plan.steps
        begin, blend, pixels, repaint = noise, None, None, None
        if plan.start is not None:
            pixels, repaint = plan.start.read()
            begin, blend = self._begin(pixels, repaint, noise, steps[0].sigma, plan.vae_tile)
        latents = begin
        denoising = self.denoise(text, begin, plan.grid, steps, plan.unconditional, blend)
        for done, latents in enumerate(denoising, start=1):
            if on_step:
                on_step(done, len(steps), latents)
        images = self.decode(latents, plan.grid, plan.vae_tile)
        if plan.start is not None and repaint is not None:
            images = paste(images, pixels, repaint, plan.start.feather)
        used = plan.to_dict() | self.manifest.identity | {"backend": self.backend, "device": self.device}
        return Generated(images, used, time.perf_counter() - started)

    def _begin(
        self, pixels: np.ndarray, repaint: np.ndarray | None, noise: np.ndarray, sigma: np.float32, tile: int | None
    ) -> tuple[np.ndarray, Blend | None]:
        """The latents (B, N, C) to start from, and what keeps the picture outside of the mask."""
        picture = self.encode_image(pixels, tile)
        if picture.shape[1:] != noise.shape[1:]:
            raise ValueError(f"the noise has shape {noise.shape}, wanted (B, {picture.shape[1]}, {picture.shape[2]})")
        blend = None
        if repaint is not None:
            blend = keep_outside(repaint, picture, noise, self.manifest.sizes.multiple)
        return noised(picture, noise, sigma), blend

    def _integrate(
        self,
        conditional: Velocity,
        unconditional: Velocity | None,
        latents: np.ndarray,
        steps: Sequence[Step],
        blend: Blend | None,
    ) -> Iterator[np.ndarray]:
        """`denoise`, with a thread for the unconditional pass where the transformers have a device each."""
        with ThreadPoolExecutor(1) if self.concurrent else nullcontext() as executor:
            yield from denoise(conditional, unconditional, latents, steps, blend=blend, executor=executor)

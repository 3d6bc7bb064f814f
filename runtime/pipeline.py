"""A prompt in, a picture out: the stages of a bundle in order.

`Pipeline.generate` is the whole line; `encode`, `denoise` and `decode` are its parts, for callers that want previews,
early stops or their own noise.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backend import Graph, Opened, choose_backend, open_graphs
from runtime.caption import Caption
from runtime.denoise import NonFiniteError, Velocity, denoise
from runtime.features import FeatureCache
from runtime.integrity import check_files
from runtime.limits import check_limits
from runtime.manifest import BundleError, EngineSet, Manifest, read_manifest
from runtime.noise import randn
from runtime.plan import Plan, make_plan
from runtime.prompt import PromptEncoder
from runtime.rope import image_positions, rope_tables, text_positions
from runtime.schedule import Step, round_to_bfloat16

OnStep = Callable[[int, int, np.ndarray], None]
"""Called after each step with the steps done, the number of steps, and the latents (B, N, C) float32."""


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
    ) -> None:
        self.manifest, self.graphs, self.prompt = manifest, graphs, prompt
        self.backend, self.device = backend, device
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
    ) -> "Pipeline":
        """Load a bundle.

        Args:
            directory: the bundle.
            backend: ``ort``, ``rtx``, ``tensorrt``, or ``auto``: engines if the bundle has some that this machine can
                run, else ONNX Runtime. `opened.choice` says what was taken and why.
            device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: the first GPU for engines, the CPU for ONNX Runtime.
            memory: which engines are on the GPU together: ``resident``, ``staged``, or ``auto`` for what fits; see
                `runtime.memory_plan`.
            threads: CPU threads for a graph of ONNX Runtime; None for one per core.
            verify: compare the SHA-256 of every file with the manifest, not only its size.
            unconditional: load the unconditional transformer, if the bundle has one. Pictures without guidance do
                not need it, and it is as large as the conditional one.
            plans: what will be run, if it is known: sizes that engines do not take are found before loading.

        Raises:
            FileNotFoundError: there is no bundle in `directory`.
            BundleError: the bundle is damaged.
            ValueError: an argument is none of those above, or the engines do not take a plan's sizes.
            RuntimeError: the backend or device is not there, or cannot run this bundle.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        wanted = ["text_encoder", "dit_cond", "vae_decoder"]
        if unconditional and "dit_uncond" in manifest.stages:
            wanted.append("dit_uncond")
        if missing := [name for name in wanted if name not in manifest.stages]:
            raise BundleError(f"the bundle {directory} has no graph {missing[0]}, which generation needs")
        choice = choose_backend(manifest, wanted, backend, device, memory)
        if choice.engines:
            for plan in plans:
                check_limits(choice.engines, wanted, plan)
        check_files(directory, manifest.files, hashes=verify)
        encoder = PromptEncoder(directory / manifest.prompt.tokenizer, manifest.prompt)
        opened = open_graphs(manifest, directory, wanted, choice, threads)
        return cls(manifest, opened.graphs, encoder, choice.backend, choice.device, opened)

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
    ) -> Iterator[np.ndarray]:
        """Yield the latents (B, N, C) float32 after each step.

        Args:
            text: (1, T, E) float32 from `encode`.
            noise: (B, N, C) float32, N image tokens in row-major order.
            grid: rows and columns of image tokens.
            steps: from `runtime.schedule.schedule`.
            unconditional: one of `runtime.plan.UNCONDITIONAL`.
        """
        rows, columns = grid
        if noise.shape[1:] != (rows * columns, self.manifest.latent_channels):
            raise ValueError(
                f"the noise has shape {noise.shape}, wanted (B, {rows * columns}, {self.manifest.latent_channels})"
            )
        text = np.repeat(text, len(noise), axis=0)
        conditional = self._velocity("dit_cond", grid, text)
        free: Velocity | None = None
        if unconditional == "graph" and "dit_uncond" in self.graphs:
            free = self._velocity("dit_uncond", grid, None)
        elif unconditional == "conditional":
            free = self._velocity("dit_cond", grid, text[:, :0])
        return denoise(conditional, free, noise, steps)

    def decode(self, latents: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Pictures (B, H, W, 3) uint8 from latents (B, N, C) float32 on a grid of N = rows * columns tokens."""
        decoder = self.graphs["vae_decoder"]
        # One at a time: the decoder's activations are the largest of the whole line.
        return np.concatenate([decoder(latents=one.reshape(1, *grid, -1)) for one in latents])

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
        noise: np.ndarray | None = None,
        on_step: OnStep | None = None,
    ) -> Generated:
        """Make pictures for a prompt.

        Args:
            prompt: a caption, or text that the model gets as it is: plain text or a JSON caption.
            width: pixels; None for the bundle's default size.
            height: pixels; None for the bundle's default size.
            preset: one of `runtime.schedule.PRESETS`; None for the bundle's default, unless `steps` is given.
            steps: number of steps instead of a preset, with guidance 7, mu 0 and std 1.5 unless given.
            guidance: one weight for all steps, or one for each; overrides the preset's.
            mu: mean of the schedule; overrides the preset's.
            std: standard deviation of the schedule; overrides the preset's.
            seed: of the start noise, as in ``torch.Generator("cpu").manual_seed``; None for a random one.
            num_images: pictures from one noise draw of that batch size.
            unconditional: ``graph``, ``conditional`` or ``off`` (all guidance is 1); see `runtime.plan`.
            noise: (num_images, N, C) float32 to start from instead of the seed's.
            on_step: called after each step.

        Raises:
            ValueError: an argument is out of range, or the bundle cannot do what is asked for.
            NonFiniteError: a graph gave NaN or infinity.
        """
        plan = make_plan(
            self.manifest, self.prompt, str(prompt), width=width, height=height, preset=preset, steps=steps,
            guidance=guidance, mu=mu, std=std, seed=seed, num_images=num_images, unconditional=unconditional,
        )  # fmt: skip
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
        steps, latents = plan.steps, noise
        for done, latents in enumerate(self.denoise(text, noise, plan.grid, steps, plan.unconditional), start=1):
            if on_step:
                on_step(done, len(steps), latents)
        images = self.decode(latents, plan.grid)
        used = plan.to_dict() | self.manifest.identity | {"backend": self.backend, "device": self.device}
        return Generated(images, used, time.perf_counter() - started)

    def _velocity(self, name: str, grid: tuple[int, int], text: np.ndarray | None) -> Velocity:
        """Bind everything that stays the same between steps to the graph."""
        length = 0 if text is None else text.shape[1]
        positions = np.concatenate((text_positions(length), image_positions(*grid)))
        rope = self.manifest.rope
        cosines, sines = rope_tables(positions, rope.head_dim, rope.theta, rope.sections)
        feeds = {"rope_cos": cosines, "rope_sin": sines} | ({} if text is None else {"text": text})
        for array in feeds.values():
            array.setflags(write=False)  # tells the graph that it may keep them on its device
        return partial(self._run_velocity, self.graphs[name], feeds)

    def _run_velocity(
        self, graph: Graph, feeds: dict[str, np.ndarray], latents: np.ndarray, t: np.float32
    ) -> np.ndarray:
        if self.manifest.timestep_dtype == "bfloat16":
            t = round_to_bfloat16(t)
        return graph(latents=latents, timestep=np.full(len(latents), t, np.float32), **feeds)

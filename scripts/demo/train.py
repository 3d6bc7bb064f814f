"""Train the demo checkpoint from scratch: the data is drawn by program, the networks are those of `model`.

    python -m scripts.demo.train --run demo-run --output demo

Stages: autoencoder, latents of the scenes, conditional transformer, unconditional transformer, the decoder once more,
checkpoint. The run directory keeps their state; re-running the command resumes a killed run, and
larger numbers of steps extend a finished one. The text encoder stays random.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from runtime.console import guard
from training.autoencoder import Autoencoder, place_latents, reconstruction_psnr, refine_decoder, train_autoencoder
from training.checkpoint import round_as_stored, write_checkpoint
from training.latents import SCENES, caption_groups, load_latents
from training.scenes import Scene, sample_scene
from training.text_encoder import random_text_encoder
from training.tokenizer import make_tokenizer
from training.transformer import train_denoiser
from training.workers import run_workers, worker

_PLACING_SEED, _TEST_SEED = 7, 8
_PLACING_SCENES, _TEST_SCENES = 512, 200


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return guard("scripts.demo.train", lambda: train_demo(args))


def train_demo(args: argparse.Namespace) -> None:
    """Start the workers."""
    if args.output and args.output.exists():
        raise FileExistsError(f"{args.output} exists; remove it first")
    args.run.mkdir(parents=True, exist_ok=True)
    run_workers(args.workers, train_all, args)


def train_all(args: argparse.Namespace) -> None:
    """All stages, in each of the workers; the first one writes."""
    autoencoder = placed_autoencoder(args.run, args.autoencoder_steps, args.quiet)
    if worker() == 0:
        print(f"autoencoder: {_quality(autoencoder):.2f} dB on new scenes", flush=True)
    latents = load_latents(args.run / "latents", autoencoder, args.scenes, args.quiet)
    tokenizer = make_tokenizer()
    # The transformer learns with the encoder's weights as they are stored.
    encoder = round_as_stored(random_text_encoder())
    captions = caption_groups(tokenizer, args.scenes)
    conditional = train_denoiser(
        args.run / "conditional.pt", latents, captions, encoder, args.steps, compiled=args.compile, quiet=args.quiet
    )
    unconditional = train_denoiser(
        args.run / "unconditional.pt",
        latents,
        None,
        None,
        args.unconditional_steps,
        start=conditional.transformer.state_dict(),
        quiet=args.quiet,
    )
    refine_decoder(args.run / "decoder.pt", autoencoder, args.decoder_steps, args.quiet)
    round_as_stored(autoencoder, float8=False)
    if worker() == 0:
        print(f"refined decoder: {_quality(autoencoder):.2f} dB on new scenes", flush=True)
    if args.output and worker() == 0:
        write_checkpoint(args.output, tokenizer, encoder, autoencoder, conditional, unconditional)


def placed_autoencoder(run: Path, steps: int, quiet: bool) -> Autoencoder:
    """The trained autoencoder with its latents where the released statistics expect them, rounded as stored."""
    autoencoder = train_autoencoder(run / "autoencoder.pt", steps, quiet)
    place_latents(autoencoder, _scenes(_PLACING_SEED, _PLACING_SCENES))
    round_as_stored(autoencoder, float8=False)
    return autoencoder


def _quality(autoencoder: Autoencoder) -> float:
    return reconstruction_psnr(autoencoder, _scenes(_TEST_SEED, _TEST_SCENES))


def _scenes(seed: int, count: int) -> list[Scene]:
    random = np.random.default_rng(seed)
    return [sample_scene(random) for _ in range(count)]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.demo.train", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="state of the training; created, or resumed from")
    add("--output", type=Path, metavar="DIR", help="checkpoint to write at the end; it must not exist")
    add("--autoencoder-steps", type=int, default=2000, metavar="N", help="(default: %(default)s)")
    add("--steps", type=int, default=6000, metavar="N", help="of the conditional transformer (default: %(default)s)")
    add(
        "--unconditional-steps",
        type=int,
        default=800,
        metavar="N",
        help="of the unconditional one, which starts from the other's weights (default: %(default)s)",
    )
    add(
        "--decoder-steps",
        type=int,
        default=600,
        metavar="N",
        help="of the autoencoder's decoder alone, at the end (default: %(default)s)",
    )
    add("--scenes", type=int, default=SCENES, metavar="N", help="number of different pictures (default: %(default)s)")
    add("--workers", type=int, default=2, metavar="N", help="processes that share each batch (default: %(default)s)")
    add("--compile", action="store_true", help="compile the transformer first: faster, needs a C++ compiler")
    add("--quiet", action="store_true", help="no progress bars")
    return parser


if __name__ == "__main__":
    sys.exit(main())

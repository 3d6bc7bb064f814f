"""What the demo model has learned, at a few prompts; scripts/demo/evaluate.py asks for hundreds."""

import numpy as np

from runtime.image.preview import preview_image
from runtime.pipeline import Pipeline
from scripts.demo import evaluate as evaluate_demo
from training.judge import Verdict
from training.questions import questions


def test_summary():
    verdicts = [Verdict(True, True, True, True), Verdict(True, False, True, False)]
    result = evaluate_demo.summarize("demo", "fp8", "V4_TURBO_12", None, "one", verdicts)
    assert (result.background, result.color, result.place, result.shape, result.everything) == (100, 50, 100, 50, 50)
    line = "| fp8 | V4_TURBO_12 | model's | 2 one | 100.0 % | 50.0 % | 100.0 % | 50.0 % | 50.0 % |"
    assert evaluate_demo.table([result]).splitlines()[-1] == line


def test_evaluation_of_few(demo_bundle, tmp_path, capsys):
    output = tmp_path / "results.json"
    arguments = [str(demo_bundle), "--prompts", "2", "--guidance", "model", "7", "--quiet", "--json", str(output)]
    assert evaluate_demo.main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2
    assert output.read_text().count('"precision": "fp32"') == 2
    assert evaluate_demo.main(arguments) == 1
    assert "scripts.demo.evaluate: error: " in capsys.readouterr().err


def test_the_demo_draws_what_it_is_asked_for(demo_bundle):
    """Combinations that it never saw; the bounds are three standard deviations of 40 draws below what is measured."""
    pipeline = Pipeline.load(demo_bundle)
    verdicts = evaluate_demo.verdicts_of(pipeline, questions("one", 40), "V4_DEFAULT_20", None, quiet=True)
    result = evaluate_demo.summarize("demo", "fp32", "V4_DEFAULT_20", None, "one", verdicts)
    assert result.background >= 95 and result.place >= 95  # measured: 100 and 100
    assert result.color >= 86 and result.shape >= 72  # measured: 95.6 and 87.5


def test_previews_show_the_picture(demo_bundle):
    """The last preview against the picture itself, 8 x 8 pixels of it for each pixel of the preview."""
    pipeline, latents = Pipeline.load(demo_bundle), []
    prompt = "a red circle at the center on a blue background"
    made = pipeline.generate(prompt, preset="V4_TURBO_12", seed=4, on_step=lambda done, total, z: latents.append(z[0]))
    preview = preview_image(latents[-1], (8, 8), pipeline.manifest.preview).astype(float)
    colours = made.images[0].reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
    # Measured: 43. A linear map of a deep decoder is not exact; the two colours of the picture are 286 apart.
    assert np.sqrt(np.square(preview - colours).mean()) < 60

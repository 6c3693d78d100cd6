"""Write results/cmu_a.md: CMU's track A on real recordings, part by part and as a whole.

python benchmarks/cmu_a.py ../shared --runs runs/a --snail zen

`--runs` holds run folders: MVQVAEs, where NAME-none is NAME without a foley head; PixelSNAILs of the codes of one of
them; one MHiFiGAN. What has no checkpoint yet is left out. Sounds are kept in `--work` and made anew only for runs that
have gone on since.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
import zen
from baseline_cmu_b import by_label, foleybox, is_made, last_measured, number, real, weights_of
from kt import METRICS, ROOT, figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from foleybox.audio import read_wave, write_wave
from foleybox.errors import UserError
from foleybox.files import sha256, write_text
from foleybox.lab.baseline.codes import check_vqvae, decode_codes, encode_mels
from foleybox.lab.baseline.runs import load_pixelsnail
from foleybox.lab.baseline.systems import SNAIL
from foleybox.lab.baseline.train_pixelsnail import TrainPixelsnail
from foleybox.lab.cmu.cembed import PARTS, CembedConfig, Cembeds, load_cembeds
from foleybox.lab.cmu.masks import PartMasks
from foleybox.lab.cmu.mhifigan import Mhifigan, waves_of_cembeds
from foleybox.lab.cmu.mvqvae import Mvqvae
from foleybox.lab.cmu.runs import load_mhifigan, load_mvqvae, mhifigan_config
from foleybox.lab.cmu.systems import MVQ
from foleybox.lab.cmu.train_mhifigan import MaskedSegments, TrainMhifigan
from foleybox.lab.cmu.train_mvqvae import TrainMvqvae
from foleybox.lab.core.cache import load_wave_cache
from foleybox.lab.core.clips import ClipFile, find_clips, split_by_recording
from foleybox.lab.core.loop import seed_step, spread
from foleybox.lab.core.losses import feature_matching, mel_distance, squares_discriminator, squares_generator
from foleybox.lab.core.mel import CEMBED, LogMel
from foleybox.lab.core.runs import plain, read_run_config, read_state
from foleybox.lab.evaluation.embeddings import EmbeddingName
from foleybox.lab.export.command import commit
from foleybox.lab.play.sample import SAMPLES
from foleybox.lab.vocoders.hifigan import MultiPeriodDiscriminator, MultiScaleDiscriminator, PeriodConfig, ScaleConfig
from foleybox.lab.vocoders.train_hifigan import judge
from foleybox.labels import LABELS
from foleybox.studio.sheet import picture

NONE = "-none"  # ends the name of a run without a head
PRINTED_4 = {  # CMU's Table 4, CEmbeds: (MSE, cross-entropy, latent difference)
    ("conditioned", "train"): (0.357, 0.0859, 0.0179),
    ("not", "train"): (0.4084, None, 0.2973),
    ("conditioned", "held_out"): (0.2636, 0.02145, 0.0208),
    ("not", "held_out"): (0.3196, None, 0.3669),
}
PRINTED_5 = {"train": (0.3336, 3.041, 27.911), "held out": (0.3281, 2.961, 27.760)}  # mel, discriminator, generator
SIDES = ("train", "held_out")
ROUNDS = 2  # draws of a segment of every clip, for Table 5


@dataclass(frozen=True)
class Benchmark:
    """Measure runs of track A and write the page."""

    shared: tyro.conf.Positional[Path]
    "folder with data/foley and weights"
    runs: Path = Path("runs/a")
    "folder of the run folders"
    snail: str = "zen"
    "name of the PixelSNAIL's run that is drawn"
    work: Path = Path("runs/a-work")
    "sounds are kept here"
    reference: str | None = None
    "real clips to measure against, and to send through the parts; default: the split dev of the shared data"
    floor: str | None = None
    "further real clips, measured like a system; default: the split train"
    clips: int = 100
    "drawn sounds of each label; 0: no sounds, only what is measured without them"
    trips: int = 30
    "real clips of each label that go through MVQVAE and MHiFiGAN"
    seed: int = 0
    "of the first drawn sound"
    batch: int = 32
    "sounds drawn at once"
    timed: bool = True
    "also time a training step with and without Zen mode at these codes"
    embedding: EmbeddingName = "mn04"
    weights: Path | None = None
    "the embedding's, if not found as `foleybox evaluate` finds them"
    out: Path = ROOT / "results" / "cmu_a.md"


class Bench:
    """The runs, checked to belong together."""

    def __init__(self, config: Benchmark) -> None:
        self.config = config
        data = config.shared / "data" / "foley"
        self.reference, self.floor = config.reference or f"{data}:dev", config.floor or f"{data}:train"
        runs = [
            path.parent for path in sorted(config.runs.glob("*/config.json")) if (path.parent / "state.pt").is_file()
        ]
        parts = {run: str(read_run_config(run)["part"]) for run in runs}
        mvqvaes = [run for run in runs if parts[run] == "mvqvae"]
        snails = [run for run in runs if parts[run] == "pixelsnail"]
        voices = [run for run in runs if parts[run] == "mhifigan"]
        if not mvqvaes or len(voices) != 1 or config.runs / config.snail not in snails:
            raise UserError(
                f"{config.runs} holds {len(mvqvaes)} MVQVAEs, {len(voices)} MHiFiGANs and the PixelSNAILs "
                f"{[run.name for run in snails]}: expected one or more, one, and {config.snail!r} among them"
            )
        self.mvqvaes = {run: load_mvqvae(run) for run in mvqvaes}
        self.snails = {run: load_pixelsnail(run) for run in snails}
        self.voice, self.voice_run = load_mhifigan(voices[0]), voices[0]
        snail = self.snails[config.runs / config.snail]
        fitting = [run for run, (mvqvae, *_) in self.mvqvaes.items() if fits(mvqvae, snail[1])]
        if not fitting:
            check_vqvae(next(iter(self.mvqvaes.values()))[0], snail[1], config.snail)
        self.chosen = fitting[0]
        self.features = self.mvqvaes[self.chosen][1]
        others = [run for run, (_, features, _) in self.mvqvaes.items() if features != self.features]
        if others or self.voice[1] != self.features:
            raise UserError(f"{(others or voices)[0]} reads CEmbeds of another encoder than {self.chosen} does")
        self.mark = " (stand-in)" if self.features.stand_in else ""
        settings = read_run_config(self.chosen)
        clips = [clip for source in settings["data"] for clip in find_clips(source, tiers=settings["tiers"] or None)]
        self.heard, self.held = split_by_recording(clips, settings["held_out"])

    def table(self, head: list[str], rows: list[list[str]]) -> str:
        """Lay out a table, which says stand-in if it is of one."""
        return zen.table([head[0] + self.mark, *head[1:]], rows)


def fits(mvqvae: Mvqvae, fingerprint: str) -> bool:
    try:
        check_vqvae(mvqvae, fingerprint, "")
    except UserError:
        return False
    return True


# --- runs in words ------------------------------------------------------------------------------------------------


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without the dataclasses that they are sorted into: flags have no prefix."""
    found = {}
    for key, value in settings.items():
        found |= value if isinstance(value, dict) else {key: value}
    return found


def command(run: Path) -> str:
    """Return the command that a run's settings are those of: the flags that differ from what is there without them."""
    settings = read_run_config(run)
    part = settings["part"]
    if part == "pixelsnail":  # its model follows from --size and its codes
        settings = {key: value for key, value in settings.items() if key not in ("model", "vqvae", "scored")}
        defaults = plain(TrainPixelsnail(Path())) | plain(SNAIL[settings["system"]])
    elif part == "mvqvae":
        defaults = plain(TrainMvqvae()) | plain(MVQ[settings["system"]])
    else:
        defaults = plain(TrainMhifigan())
    found, usual = flat(settings), flat(defaults)
    data = found["data"] if isinstance(found["data"], list) else [found["data"]]
    words = ["foleybox", "train", part, *data, *(["--system", found["system"]] if "system" in found else [])]
    for key, value in found.items():
        if key in usual and key not in ("data", "out", "system") and value != usual[key]:
            name = key.replace("_", "-")
            values = value if isinstance(value, list) else [value]
            words += [f"--no-{name}"] if value is False else [f"--{name}"]
            words += [] if isinstance(value, bool) else map(str, values)
    return " ".join([*words, "-o", found["out"]])


def described(bench: Bench) -> list[list[str]]:
    """Return the rows of the runs."""
    found: list[tuple[Path, nn.Module, int]] = [(run, model, step) for run, (model, _, step) in bench.mvqvaes.items()]
    found += [(run, model, step) for run, (model, _, step) in bench.snails.items()]
    found.append((bench.voice_run, bench.voice[0], bench.voice[2]))
    rows = []
    for run, model, step in found:
        settings = read_run_config(run)
        low = f"{settings['lr_low']:g} to " if settings.get("schedule", "constant") != "constant" else ""
        rows.append([
            run.name, f"{sum(weight.numel() for weight in model.parameters()):,}", f"{step:,} of {settings['steps']:,}",
            str(settings["batch"]), f"{step * settings['batch']:,}", f"{low}{settings['lr']:g}", settings["precision"],
            str(settings["seed"]),
        ])  # fmt: skip
    return rows


# --- Table 4 ------------------------------------------------------------------------------------------------------


def pairs(bench: Bench) -> list[tuple[Path, Path]]:
    """Return (with a head, without) of the runs that differ in nothing else, read at the same step."""
    found = []
    for run, (_, _, step) in bench.mvqvaes.items():
        other = run.with_name(run.name + NONE)
        if other not in bench.mvqvaes:
            continue
        mine, theirs = ({**read_run_config(each), "head": "", "out": ""} for each in (run, other))
        if mine != theirs or step != bench.mvqvaes[other][2]:
            raise UserError(f"{run} and {other} differ in more than the head: expected the same settings and steps")
        found.append((run, other))
    return found


def table4(bench: Bench) -> str:
    if not pairs(bench):
        return "No two runs are there that differ in the head alone."
    rows = []
    for pair in pairs(bench):
        for side in SIDES:
            for run, name in zip(pair, ("conditioned", "not")):
                line = last_measured(run)
                cells = [number(line, f"{side}_{key}", ".4f") for key in ("mse", "mse_encoder", "mse_mel")]
                cells += [number(line, f"{side}_{key}", ".4f") for key in ("latent", "cross_entropy")]
                cells += [
                    number(line, f"{side}_{key}", form) for key, form in (("accuracy", ".3f"), ("perplexity", ".1f"))
                ]
                cells += [number(line, f"{side}_{key}", ".0f") for key in ("used", "clips")]
                printed = ["-" if value is None else f"{value:g}" for value in PRINTED_4[name, side]]
                grid = " x ".join(map(str, bench.mvqvaes[run][0].grid))
                rows.append([name, grid, side.replace("_", " "), *cells, " / ".join(printed)])
    head = ["MVQVAE", "grid", "clips", "MSE", "encoder's rows", "mel's rows", "latent difference", "cross-entropy"]
    return bench.table(
        [*head, "accuracy", "perplexity", "codes used", "n", "printed: MSE / cross-entropy / latent"], rows
    )


def claim4(bench: Bench) -> str:
    """Set the report's claim beside what was found: conditioned over not, below 1 where it helps."""
    rows = []
    for pair in pairs(bench):
        ours, base = (last_measured(run) for run in pair)
        for side in SIDES:
            for key, place in (("mse", 0), ("latent", 2)):
                if f"{side}_{key}" not in ours:
                    continue
                printed = [PRINTED_4[name, side][place] for name in ("conditioned", "not")]
                claim = printed[0] / printed[1] if printed[0] and printed[1] else float("nan")
                here = ours[f"{side}_{key}"] / base[f"{side}_{key}"]
                what = f"{'MSE' if key == 'mse' else 'latent difference'}, {side.replace('_', ' ')}"
                rows.append([what, " x ".join(map(str, bench.mvqvaes[pair[0]][0].grid)), f"{here:.3f}", f"{claim:.3f}"])
    return bench.table(["conditioned / not", "grid", "here", "printed"], rows)


# --- what a grid keeps --------------------------------------------------------------------------------------------


@torch.no_grad()
def kept_of(real: Cembeds, deviation: Tensor, through: Any, batch: int = 8) -> tuple[float, float, float]:
    """Return errors of clips after `through`: squared of the encoder's rows, scaled; squared and absolute of the mel.

    `through` makes raw CEmbeds of raw ones; `deviation` [F] is the rows'. The mel's errors are in natural-log units.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for some in torch.arange(len(real)).split(batch):
        features = real[some]
        encoder, mel = (through(features) - features).split(PARTS, 1)
        scaled = encoder / deviation[: PARTS[0], None]
        sums += len(some) * torch.stack([scaled.square().mean(), mel.square().mean(), mel.abs().mean()]).double()
    first, second, third = (sums / len(real)).tolist()
    return first, second, third


def grids(bench: Bench) -> str:
    """Lay out what each MVQVAE keeps of held-out clips, and what drawing its codes costs."""
    held, rows = load_cembeds(bench.held, bench.features), []
    common = bench.mvqvaes[bench.chosen][0].rows
    nothing = kept_of(held, common.deviation, lambda real: common.mean[:, None].expand_as(real))
    rows.append(["the mean of every row", "-", "0", "0", *(f"{value:.3f}" for value in nothing), "-", "-"])
    for components in sorted({model.config.components for model, *_ in bench.mvqvaes.values()} - {0}):
        scale = next(m.rows for m, *_ in bench.mvqvaes.values() if m.config.components == components)
        alone = kept_of(held, common.deviation, lambda real, scale=scale: scale.back(scale(real)))
        rows.append(
            [f"{components} components, uncoded", "-", "-", "-", *(f"{value:.3f}" for value in alone), "-", "-"]
        )
    drawn: dict[tuple[int, int], float] = {}
    for run, (mvqvae, _, step) in bench.mvqvaes.items():
        if run.name.endswith(NONE):
            continue
        tokens = mvqvae.grid[0] * mvqvae.grid[1]
        if mvqvae.grid not in drawn:
            model = zen.sampler(1, mvqvae.grid)
            drawn[mvqvae.grid] = zen.timed(lambda model=model: zen.sample(model, [3], [7]))[1]
        errors = kept_of(held, common.deviation, lambda real, m=mvqvae: decode_codes(m, encode_mels(m, real)))
        rows.append([
            run.name, " x ".join(map(str, mvqvae.grid)), f"{tokens:,}", f"{tokens * np.log2(mvqvae.config.size):,.0f}",
            *(f"{value:.3f}" for value in errors), f"{step * read_run_config(run)['batch']:,}", f"{drawn[mvqvae.grid]:.2f}",
        ])  # fmt: skip
    head = ["MVQVAE", "grid", "codes a clip", "bits", "encoder's rows, MSE", "mel, MSE (natural log)", "mel, L1"]
    return bench.table([*head, "clips it has heard", "s to draw a clip"], rows)


# --- PixelSNAIL ---------------------------------------------------------------------------------------------------


def drawing(bench: Bench) -> str:
    """Lay out how well each PixelSNAIL foretells the codes, beside saying always the same."""
    rows = []
    for run, (snail, _, step) in bench.snails.items():
        line = last_measured(run)
        zens = {0: "plain", 1: "Zen, one halving", 2: "Zen, two halvings"}[snail.config.zen]
        cells = [number(line, f"{side}_cross_entropy", ".4f") for side in SIDES]
        cells += [f"{100 * line[f'{side}_accuracy']:.2f} %" if f"{side}_accuracy" in line else "-" for side in SIDES]
        grid = f"{snail.config.height} x {snail.config.width}"
        rows.append([run.name, zens, grid, f"{step:,}", *cells, number(line, "held_out_clips", ".0f")])
    head = ["PixelSNAIL", "attention", "codes", "step", "cross-entropy (nats a code), train", "held out"]
    return bench.table([*head, "accuracy, train", "held out", "n"], rows)


def codes_alone(bench: Bench) -> str:
    """Say how well codes are foretold by what no network is needed for."""
    mvqvae = bench.mvqvaes[bench.chosen][0]
    kept, held = (
        encode_mels(mvqvae, load_cembeds(clips, bench.features))
        for clips in ([bench.heard[i] for i in spread(len(bench.heard), 4 * len(bench.held)).tolist()], bench.held)
    )
    counts = torch.stack([torch.bincount(row.flatten(), minlength=mvqvae.config.size) for row in kept.unbind(1)])
    likely = counts.argmax(1)
    hits = float((held == likely[None, :, None]).float().mean())
    shares = (counts + 1) / (counts + 1).sum(1, keepdim=True)
    nats = -float(shares.log()[torch.arange(held.shape[1])[None, :, None].expand_as(held), held].mean())
    return (
        f"Knowing nothing costs ln {mvqvae.config.size:,} = {np.log(mvqvae.config.size):.2f} nats a code; knowing how often "
        f"each code is in its row of the grid ({len(kept):,} training clips counted) {nats:.4f}, and saying always the "
        f"row's likeliest is right for {100 * hits:.2f} % of the held-out clips' codes."
    )


def step_of_training(bench: Bench) -> list[str]:
    grid = bench.mvqvaes[bench.chosen][0].grid
    if not bench.config.timed:
        return ["Time and memory of a training step, and all of Zen's arithmetic: [zen.md](zen.md)."]
    return [
        f"A training step at these {grid[0]} x {grid[1]} codes, one clip, float32, each kind in its own process; memory "
        "beside the model. At 72 x 75, and all of Zen's arithmetic: [zen.md](zen.md).",
        zen.training(zen.Benchmark(train_grid=grid, repeats=3)),
    ]


# --- Table 5 ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def table5(bench: Bench) -> str:
    """Lay out MHiFiGAN's losses of masked segments, of clips it has heard and of those held out."""
    settings, state = read_run_config(bench.voice_run), read_state(bench.voice_run / "state.pt")
    names = {field.name for field in fields(TrainMhifigan)} - {"data", "out", "tiers", "features", "masks"}
    config = replace(
        TrainMhifigan(features=bench.features, masks=PartMasks(**settings["masks"])),
        **{name: settings[name] for name in names},
    )
    clips = [
        clip
        for source in settings["data"]
        for clip in find_clips(source, tiers=settings["tiers"] or None, any_label=True)
    ]
    heard, held = split_by_recording(clips, config.held_out)
    heard = [heard[index] for index in spread(len(heard), len(held)).tolist()]
    voice = Mhifigan(mhifigan_config(config.vocoder, config.width))
    voice.load_state_dict(state["generator"])
    critics = nn.ModuleList([
        MultiPeriodDiscriminator(PeriodConfig(config.period_width)), MultiScaleDiscriminator(ScaleConfig(config.scale_width))
    ])  # fmt: skip
    critics.load_state_dict(state["critics"])
    mel, rows = LogMel(replace(CEMBED, low=0.0, high=CEMBED.rate / 2)), []
    for name, some in (("train", training_rows), ("held out", held)):
        waves = load_wave_cache(some, CEMBED.rate, 4.0)
        segments = MaskedSegments(waves, load_cembeds(some, bench.features), config, voice)
        sums, count = torch.zeros(3), 0
        for number_of in range(ROUNDS):
            seed_step(config.seed, number_of)
            for which in torch.arange(len(some)).split(config.batch):
                wave, read = segments.draw(which)
                fake = voice(read)
                (real_scores, target), (fake_scores, seen) = judge(critics, wave), judge(critics, fake)
                error = mel_distance(mel(wave), mel(fake))
                judged = squares_discriminator(real_scores, fake_scores)
                loss = squares_generator(fake_scores) + config.mel_weight * error
                loss = loss + config.matching_weight * feature_matching(target, seen)
                sums += len(which) * torch.stack([error, judged, loss])
                count += len(which)
        printed = " / ".join(f"{value:.3f}" for value in PRINTED_5[name])
        rows.append([name, *(f"{value:.3f}" for value in (sums / count).tolist()), f"{len(some)} x {ROUNDS}", printed])
    return bench.table(["clips", "mel L1", "discriminator", "generator", "n", "printed: mel / D / G"], rows)


# --- sounds -------------------------------------------------------------------------------------------------------


def drawn(bench: Bench) -> tuple[Path, str]:
    """Return the folder of drawn sounds, and the command that makes them."""
    config = bench.config
    place, snail = config.work / config.snail, config.runs / config.snail
    made_of = (
        f"{[sha256(weights_of(run)) for run in (snail, bench.chosen, bench.voice_run)]} {config.clips} {config.seed}"
    )
    words = [
        "generate", "all", "--instrument", snail, "--vqvae", bench.chosen, "--vocoder", bench.voice_run, "-n", config.clips,
        "--seed", config.seed, "--batch", config.batch, "-o", place,
    ]  # fmt: skip
    if not is_made(place, made_of):
        foleybox(*words, "--force")
        write_text(place.with_suffix(".txt"), made_of)
    return place, " ".join(map(str, ["foleybox", *words]))


def round_trip(bench: Bench, name: str, clips: Sequence[ClipFile], mvqvae_run: Path | None) -> Path:
    """Return the folder of real clips that went through the MVQVAE (if any) and MHiFiGAN."""
    place = bench.config.work / name
    parts = [bench.voice_run, *([mvqvae_run] if mvqvae_run else [])]
    made_of = f"{[sha256(weights_of(run)) for run in parts]} {[f'{clip.path.parent.name}/{clip.path.name}' for clip in clips]}"
    if is_made(place, made_of):
        return place
    cembeds = load_cembeds(clips, bench.features)
    for index, clip in enumerate(clips):
        assert clip.label is not None
        features = cembeds[torch.tensor([index])]
        if mvqvae_run is not None:
            mvqvae = bench.mvqvaes[mvqvae_run][0]
            features = decode_codes(mvqvae, encode_mels(mvqvae, features))
        (place / clip.label.name).mkdir(parents=True, exist_ok=True)
        wave = waves_of_cembeds(bench.voice[0], features)[0, :SAMPLES]
        write_wave(place / clip.label.name / f"{index:05d}.wav", wave.numpy(), 22_050)
    write_text(place.with_suffix(".txt"), made_of)
    return place


def evaluate(bench: Bench, folders: list[Path]) -> list[dict[str, Any]]:
    """Return what `foleybox evaluate` says of folders of sounds, from the page's last run if they are the same."""
    config, figures = bench.config, bench.config.work / "figures.json"
    notes = [folder.with_suffix(".txt").read_text(encoding="utf-8") for folder in folders]
    made_of = "\n".join([*notes, bench.reference, bench.floor, config.embedding, str(config.weights)])
    if is_made(figures, made_of):
        return json.loads(figures.read_text(encoding="utf-8"))["systems"]
    more = [] if config.weights is None else ["--weights", config.weights]
    foleybox(
        "evaluate", *folders, "--reference", bench.reference, "--floor", bench.floor, "--embedding", config.embedding,
        "--json", figures, "--keep-silent", *more,
    )  # fmt: skip
    write_text(figures.with_suffix(".txt"), made_of)
    return json.loads(figures.read_text(encoding="utf-8"))["systems"]


def sheet(path: Path, columns: list[Path], clips: Sequence[ClipFile], first: Path) -> None:
    """Draw a row a label: three real clips, the same through each folder of `columns`, and three drawn sounds."""
    rows: list[NDArray[np.uint8]] = []
    for label in LABELS:
        which = [index for index, clip in enumerate(clips) if clip.label == label][:3]
        files = [[clips[index].path for index in which]]
        files += [[folder / label.name / f"{index:05d}.wav" for index in which] for folder in columns]
        files.append(sorted((first / label.name).glob("*.wav"))[:3])
        parts = []
        for group in files:
            parts += [picture(read_wave(file, 22_050)[0], 22_050)[::2, ::2] for file in group]
            parts.append(np.full((48, 8, 3), 255, np.uint8))
        rows.append(np.concatenate(parts, 1))
    Image.fromarray(np.concatenate(rows)).save(path)


# --- the page -----------------------------------------------------------------------------------------------------


def about_encoder(features: CembedConfig) -> str:
    if not features.stand_in:
        return f"Encoder: {features.encoder}."
    return (
        f"**Stand-in encoder** (random weights of MERT's shape, seed {features.encoder_seed}), since MERT's weights could not "
        "be had: the chain, its sizes and its arithmetic are track A's, and nothing here tells anything about MERT."
    )


def training_rows(bench: Bench) -> tuple[list[str], str]:
    """Return (the page's part on sounds; the command that draws them)."""
    config, chosen = bench.config, bench.chosen.name
    reference = find_clips(bench.reference)
    clips = [
        clip
        for label in LABELS
        for same in [[clip for clip in reference if clip.label == label]]
        for clip in [same[i] for i in spread(len(same), config.trips).tolist()]
    ]
    trips = [round_trip(bench, "mhifigan", clips, None), round_trip(bench, chosen, clips, bench.chosen)]
    place, made_by = drawn(bench)
    found = evaluate(bench, [*trips, place])
    rows = {"CEmbeds, MHiFiGAN": found[0], f"{chosen}, MHiFiGAN": found[1], f"drawn by {config.snail}": found[2]}
    sheet(config.out.with_suffix(".png"), trips, clips, place)
    overall = bench.table(
        ["what is heard", "n a label", *(metric for metric, _ in METRICS)],
        [
            *(
                [name, f"{min(label['n'] for label in record['labels'].values())}",
                 *(figure(record["mean"], *each) for each in METRICS)]
                for name, record in rows.items()
            ),
            *(
                [f"real, at n of {name}", "", *(real(record["mean"], *each) for each in METRICS)]
                for name, record in list(rows.items())[1:]
            ),
        ],
    )  # fmt: skip
    return [
        f"Clips of `{Path(bench.reference).name}` through MHiFiGAN alone, and through MVQVAE and MHiFiGAN, then drawn sounds; "
        f"all against `{Path(bench.reference).name}`, embedding {config.embedding}, intervals of 95 % over the measured "
        f"clips. Real: clips of `{Path(bench.floor).name}` at the same n. Silent clips are measured too.",
        overall,
        f"FD by label: {config.trips} clips a label through the parts, {config.clips} drawn, seeds {config.seed} to "
        f"{config.seed + config.clips - 1}; the last column is real clips at the n of the first.",
        by_label(rows),
        "TrainingClips as its label by the embedding's tagger:",
        by_label(rows, "accuracy", 2),
        f"![real clips, MHiFiGAN, MVQVAE and MHiFiGAN, drawn]({config.out.with_suffix('.png').name})",
        "A row a label, 40 Hz to 11 kHz upwards: three real clips, the same through MHiFiGAN, the same through MVQVAE and "
        "MHiFiGAN, three drawn sounds." + (" Stand-in encoder." if bench.features.stand_in else ""),
    ], made_by


def main(config: Benchmark) -> None:
    bench = Bench(config)
    config.work.mkdir(parents=True, exist_ok=True)
    sounds, made_by = training_rows(bench) if config.clips else (["Not run (`--clips 0`)."], "")
    flags = f"--clips {config.clips} --trips {config.trips} --seed {config.seed}" + " --no-timed" * (not config.timed)
    commands = "\n".join([
        *map(command, bench.mvqvaes),
        *dict.fromkeys(f"foleybox encode {bench.chosen} {' '.join(read_run_config(bench.chosen)['data'])} -o "
                       f"{read_run_config(run)['data']}" for run in bench.snails),
        *map(command, bench.snails), command(bench.voice_run), *([made_by] if made_by else []),
    ])  # fmt: skip
    parts = [
        "# CMU's track A on real recordings",
        f"Written by `python benchmarks/cmu_a.py ../shared --runs {config.runs} --snail {config.snail} {flags}` at commit "
        f"{commit() or 'unknown'}, torch {torch.__version__}, {torch.get_num_threads()} thread(s) of "
        f"{zen.processor()} ({os.cpu_count()} cores, shared with other work). " + about_encoder(bench.features),
        "## The runs",
        bench.table(
            ["run", "parameters", "step", "batch", "clips heard", "learning rate", "precision", "seed"],
            described(bench),
        ),
        f"{len(bench.heard):,} clips to train on, {len(bench.held)} held out by recording. A run that was stopped is read at "
        f"the step given. Data and settings:\n\n```\n{commands}\n```",
        "## Table 4: the MVQVAE, conditioned and not",
        table4(bench),
        "Means over clips, of scaled rows, nothing hidden. The public copy of CMU's code divides sums of batch means of the "
        "latent difference and of the cross-entropy by the number of clips: with a batch of 16, sixteen times too small. "
        "The printed MSEs are of other units.",
        *([claim4(bench), "Below 1, conditioning helps."] if pairs(bench) else []),
        "## What a grid keeps of a clip, and what it costs to draw",
        f"{len(bench.held)} held-out clips, through codes and back to raw CEmbeds. The encoder's rows in units of their "
        "deviation, the mel in natural-log units. Drawing: seconds of processor for one clip by the incremental sampler, a "
        f"PixelSNAIL of {zen.SMALL.channels} channels, {zen.SMALL.blocks} blocks, one halving, random weights. Grids were not "
        "trained alike (clips heard): an upper bound on each error.",
        grids(bench),
        "## Zen PixelSNAIL against plain attention",
        codes_alone(bench),
        drawing(bench),
        *step_of_training(bench),
        "## Table 5: MHiFiGAN on masked CEmbeds",
        table5(bench),
        "The L1 is of log-mels to half the rate; discriminators are narrower than the published (settings above), so that "
        "their losses compare only with each other.",
        "## Where quality is lost",
        *sounds,
    ]
    seen = config.out.with_name(f"{config.out.stem}_seen.md")
    if seen.is_file():
        parts.append(seen.read_text(encoding="utf-8").rstrip())
    write_text(config.out, "\n\n".join(parts) + "\n")
    print(f"wrote {config.out}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Benchmark))
    except UserError as error:
        sys.exit(f"cmu_a: {error}")

"""Write results/baseline_cmu_b.md: the official baseline and CMU's track B, trained alike, measured side by side.

python benchmarks/baseline_cmu_b.py ../shared --runs runs/b --vocoder runs/ship/vocoder

`--runs` holds a VQ-VAE and a PixelSNAIL of each system. Sounds are kept in `--work` and made anew only for runs that
have gone on since.
"""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import torch
import tyro
from kt import METRICS, ROOT, figure, table
from torch import Tensor, nn

from foleybox import cli
from foleybox.audio import write_wave
from foleybox.errors import UserError
from foleybox.files import sha256, write_text
from foleybox.lab.baseline.codes import check_vqvae
from foleybox.lab.baseline.runs import load_pixelsnail, load_vqvae
from foleybox.lab.baseline.systems import SNAIL, VQ, VqSystem
from foleybox.lab.baseline.train_pixelsnail import TrainPixelsnail
from foleybox.lab.baseline.train_vqvae import TrainVqvae
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips
from foleybox.lab.core.mel import DCASE
from foleybox.lab.core.runs import fingerprint, plain, read_run_config
from foleybox.lab.evaluation.embeddings import EmbeddingName
from foleybox.lab.export.command import commit
from foleybox.lab.play.sample import read_vocoder, vocode
from foleybox.lab.vocoders.runs import load_vocoder
from foleybox.labels import LABELS

SYSTEMS: tuple[VqSystem, ...] = get_args(VqSystem)  # baseline, cmu-b
PRINTED_FAD = {  # CMU's Table 2: FAD with VGGish, by label, and its mean
    "DCASE": (13.411, 8.109, 7.951, 5.230, 16.108, 13.337, 3.770),
    "CMU's": (8.958, 4.189, 6.765, 3.086, 11.319, 9.321, 2.675),
}
PRINTED_LOSSES = {  # CMU's Table 3: (MSE, cross-entropy, latent difference)
    ("cmu-b", "train"): (0.14056, 0.02053, 0.00167),
    ("baseline", "train"): (0.14395, None, 0.00183),
    ("cmu-b", "held_out"): (0.14814, 0.02145, 0.00171),
    ("baseline", "held_out"): (0.19166, None, 0.00222),
}


@dataclass(frozen=True)
class Benchmark:
    """Measure runs of both systems and write the page."""

    shared: tyro.conf.Positional[Path]
    "folder with data/foley and weights"
    runs: Path = Path("runs/b")
    "folder of <system>-vqvae and <system>-snail, for the systems baseline and cmu-b"
    vocoder: Path = Path("runs/ship/vocoder")
    "of both systems, and of the round trips"
    work: Path = Path("runs/b-work")
    "sounds are kept here"
    reference: str | None = None
    "real clips to measure against; default: the split dev of the shared data"
    floor: str | None = None
    "further real clips, measured like a system; default: the split train"
    clips: int = 100
    "drawn sounds of each label"
    seed: int = 0
    "of the first of them"
    batch: int = 32
    "sounds drawn at once"
    embedding: EmbeddingName = "mn04"
    weights: Path | None = None
    "the embedding's, if not found as `foleybox evaluate` finds them"
    out: Path = ROOT / "results" / "baseline_cmu_b.md"


def foleybox(*arguments: object) -> None:
    """Run a verb; what it prints is in the page."""
    with redirect_stdout(StringIO()):
        code = cli.main([str(argument) for argument in arguments])
    if code:
        sys.exit(code)


def is_made(place: Path, made_of: str) -> bool:
    """Say whether a folder (or a file) holds what is made of this already; if not, forget what it was made of."""
    note = place.with_suffix(".txt")
    if note.is_file() and note.read_text(encoding="utf-8") == made_of:
        return True
    note.unlink(missing_ok=True)
    return False


class Bench:
    """What the tables share: the runs, the vocoder, and where sounds are kept."""

    def __init__(self, config: Benchmark) -> None:
        self.config = config
        data = config.shared / "data" / "foley"
        self.reference, self.floor = config.reference or f"{data}:dev", config.floor or f"{data}:train"
        self.vqvaes = {system: config.runs / f"{system}-vqvae" for system in SYSTEMS}
        self.snails = {system: config.runs / f"{system}-snail" for system in SYSTEMS}
        for system in SYSTEMS:  # what does not belong together is told before anything is drawn
            check_vqvae(load_vqvae(self.vqvaes[system])[0], load_pixelsnail(self.snails[system])[1], f"{system}-snail")
        self.vocoder = read_vocoder(config.vocoder)

    def kept(self, name: str, made_of: str) -> Path | None:
        """Return the folder to fill with sounds, None where they are there already and made of the same."""
        place = self.config.work / name
        return None if is_made(place, made_of) else place

    def note(self, place: Path, made_of: str) -> None:
        write_text(place.with_suffix(".txt"), made_of)

    def drawn(self, system: VqSystem) -> Path:
        """Return the folder of a system's sounds."""
        config, snail, vqvae = self.config, self.snails[system], self.vqvaes[system]
        states = [sha256(weights_of(run)) for run in (snail, vqvae, config.vocoder)]
        made_of = f"{states} {config.clips} {config.seed}"
        place = self.kept(system, made_of)
        if place is not None:
            foleybox(
                "generate", "all", "--instrument", snail, "--vqvae", vqvae, "--vocoder", config.vocoder, "-n", config.clips,
                "--seed", config.seed, "--batch", config.batch, "-o", place, "--force",
            )  # fmt: skip
            self.note(place, made_of)
        return config.work / system

    @torch.no_grad()
    def round_trip(self, name: str, clips: list[ClipFile], mels: Tensor, vqvae_run: Path | None) -> Path:
        """Return the folder of real clips that went through the VQ-VAE (if any) and the vocoder."""
        vqvae = None if vqvae_run is None else load_vqvae(vqvae_run)[0]
        names = [f"{clip.path.parent.name}/{clip.path.name}" for clip in clips]
        parts: list[nn.Module] = [part for part in (vqvae, self.vocoder) if part is not None]
        made_of = f"{[fingerprint(part) for part in parts]} {names}"
        place = self.kept(name, made_of)
        if place is None:
            return self.config.work / name
        for index, (clip, mel) in enumerate(zip(clips, mels, strict=True)):
            assert clip.label is not None
            back = mel[None] if vqvae is None else vqvae(mel[None]).mel
            (place / clip.label.name).mkdir(parents=True, exist_ok=True)
            write_wave(place / clip.label.name / f"{index:05d}.wav", vocode(self.vocoder, back)[0].numpy(), DCASE.rate)
        self.note(place, made_of)
        return place

    def evaluate(self, folders: list[Path], keep_silent: bool = False) -> dict[str, dict[str, Any]]:
        """Return what `foleybox evaluate` says of folders of sounds, by folder name."""
        figures, more = self.config.work / "figures.json", ["--keep-silent"] if keep_silent else []
        if self.config.weights is not None:
            more += ["--weights", str(self.config.weights)]
        foleybox(
            "evaluate", *folders, "--reference", self.reference, "--floor", self.floor, "--embedding",
            self.config.embedding, "--json", figures, *more,
        )  # fmt: skip
        found = json.loads(figures.read_text(encoding="utf-8"))["systems"]
        return {folder.name: record for folder, record in zip(folders, found, strict=True)}


# --- runs in words ------------------------------------------------------------------------------------------------


def weights_of(run: Path) -> Path:
    """Return the checkpoint that is read from a run: the best by its score, or the last."""
    return run / "best.pt" if (run / "best.pt").is_file() else run / "state.pt"


def last_measured(run: Path) -> dict[str, Any]:
    """Return the last line of a run's log that measured clips."""
    log = run / "log.jsonl"
    found = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    measured = [line for line in found if any(name.startswith("train_") for name in line)]
    if not measured:
        raise UserError(f"{run} has measured no clips yet: let it reach its next measurement, or its last step")
    return measured[-1]


def last_batches(run: Path) -> dict[str, Any]:
    """Return what the last line of a run's log says of the batches since the line before, as numbers of training clips."""
    line = json.loads((run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {f"train_{name}": line[name] for name in ("cross_entropy", "accuracy")}


def command(run: Path) -> str:
    """Return the command that a run's settings are those of: the flags that differ from its system's."""
    found = read_run_config(run)
    part, plans = ("vqvae", VQ) if found["part"] == "vqvae" else ("pixelsnail", SNAIL)
    defaults = plain(TrainVqvae() if part == "vqvae" else TrainPixelsnail(Path()))
    defaults |= plain(plans[found["system"]])
    data = found["data"] if isinstance(found["data"], list) else [found["data"]]
    words = ["foleybox", "train", part, *data, "--system", found["system"], "-o", found["out"]]
    settings = {key: value for key, value in found.items() if key in defaults and key not in ("data", "out", "system")}
    if part == "vqvae":  # a PixelSNAIL's model follows from --size and its codes
        settings |= settings.pop("model")
        defaults |= defaults.pop("model")
    for key, value in settings.items():
        if value != defaults[key]:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{key.replace('_', '-')}", *map(str, values)]
    return " ".join(words)


def described(run: Path, modules: nn.Module, step: int) -> list[str]:
    """Return a run's row: parameters, steps, batch, clips seen, rate, precision, seed."""
    found = read_run_config(run)
    low = f"{found['lr_low']:g} to " if found["schedule"] != "constant" else ""
    return [
        run.name,
        f"{sum(weight.numel() for weight in modules.parameters()):,}",
        f"{step:,} of {found['steps']:,}",
        str(found["batch"]),
        f"{step * found['batch']:,}",
        f"{low}{found['lr']:g}, {found['schedule']}",
        found["precision"],
        str(found["seed"]),
    ]


# --- tables -------------------------------------------------------------------------------------------------------


def clips_of(record: dict[str, Any]) -> str:
    """Write how many clips a label were measured."""
    counts = [label["n"] for label in record["labels"].values()]
    return " to ".join(dict.fromkeys((str(min(counts)), str(max(counts)))))


def real(record: dict[str, Any], metric: str, digits: int = 1) -> str:
    """Write what real clips score at the same number."""
    found = record["figures"].get(metric) or {}
    return "-" if found.get("floor") is None else f"{found['floor']:.{digits}f}"


def number(line: dict[str, Any], name: str, form: str) -> str:
    return "-" if line.get(name) is None else format(line[name], form)


def table3(bench: Bench) -> str:
    """Lay out the losses of the two VQ-VAEs, trained-on and held-out clips, beside the report's."""
    rows = []
    for side in ("train", "held_out"):
        for system in reversed(SYSTEMS):
            line = last_measured(bench.vqvaes[system])
            if f"{side}_mse" not in line:
                continue
            cells = [number(line, f"{side}_{name}", ".5f") for name in ("mse", "cross_entropy", "latent")]
            cells += [number(line, f"{side}_accuracy", ".3f"), number(line, f"{side}_perplexity", ".1f")]
            cells += [number(line, f"{side}_used", ".0f"), number(line, f"{side}_clips", ".0f")]
            printed = ["-" if value is None else f"{value:.5f}" for value in PRINTED_LOSSES[system, side]]
            name = "conditioned" if system == "cmu-b" else "baseline"
            rows.append([name, side.replace("_", " "), *cells, " / ".join(printed)])
    head = ["model", "clips", "MSE", "cross-entropy", "latent difference", "accuracy", "perplexity", "codes used", "n"]
    return table([*head, "printed: MSE / cross-entropy / latent"], rows)


def claims(bench: Bench) -> str:
    """Set the report's two claims beside what was found: conditioned over baseline, below 1 where it helps."""
    ours, base = (last_measured(bench.vqvaes[system]) for system in ("cmu-b", "baseline"))
    rows = []
    for side in ("train", "held_out"):
        for name, place in (("mse", 0), ("latent", 2)):
            key = f"{side}_{name}"
            if key in ours and key in base:
                printed = [PRINTED_LOSSES[system, side][place] for system in ("cmu-b", "baseline")]
                claim = printed[0] / printed[1] if printed[0] and printed[1] else float("nan")
                what = f"{'MSE' if name == 'mse' else 'latent difference'}, {side.replace('_', ' ')}"
                rows.append([what, f"{ours[key] / base[key]:.3f}", f"{claim:.3f}"])
    return table(["conditioned / baseline", "here", "printed"], rows)


def drawing(bench: Bench) -> str:
    """Lay out how well each PixelSNAIL foretells codes: of the last batches, where a run was stopped before it measured."""
    rows = []
    for system, run in bench.snails.items():
        try:
            line = last_measured(run)
        except UserError:
            line = last_batches(run)
        cells = [number(line, f"{side}_{name}", ".4f") for name in ("cross_entropy", "accuracy") for side in SIDES]
        rows.append([system, *cells, f"{load_pixelsnail(run)[2]:,}"])
    head = [
        f"{name}, {side.replace('_', ' ')}" for name in ("cross-entropy (nats a code)", "accuracy") for side in SIDES
    ]
    return table(["system", *head, "step that is played"], rows)


SIDES = ("train", "held_out")


def by_label(records: dict[str, dict[str, Any]], metric: str = "frechet", digits: int = 1) -> str:
    """Lay a metric out by label, a column a system, with what real clips score at the same n."""
    first = next(iter(records.values()))
    rows = [
        [label.name, *(figure(record["labels"][label.slug], metric, digits) for record in records.values()),
         real(first["labels"][label.slug], metric, digits)]
        for label in LABELS if label.slug in first["labels"]
    ]  # fmt: skip
    means = [figure(record["mean"], metric, digits) for record in records.values()]
    rows.append(["mean", *means, real(first["mean"], metric, digits)])
    return table(["label", *records, "real"], rows)


def main(config: Benchmark) -> None:
    bench = Bench(config)
    clips = find_clips(bench.reference)
    mels = load_mels(clips, DCASE)
    trips = {"vocoder": bench.round_trip("vocoder", clips, mels, None)}
    for system, run in bench.vqvaes.items():
        trips[f"VQ-VAE of {system}, vocoder"] = bench.round_trip(f"{system}-vqvae", clips, mels, run)
    there_and_back = dict(zip(trips, bench.evaluate([*trips.values()], keep_silent=True).values(), strict=True))
    drawn = bench.evaluate([bench.drawn(system) for system in SYSTEMS], keep_silent=True)
    parts = [(run, *load_vqvae(run)) for run in bench.vqvaes.values()]
    snails = [(run, *load_pixelsnail(run)[::2]) for run in bench.snails.values()]
    overall = table(
        ["row", "n a label", *(metric for metric, _ in METRICS)],
        [
            [
                name,
                str(next(iter(record["labels"].values()))["n"]),
                *(figure(record["mean"], *each) for each in METRICS),
            ]
            for name, record in {**there_and_back, **drawn}.items()
        ],
    )
    printed = [[label.name, *(f"{row[label.id]:.3f}" for row in PRINTED_FAD.values())] for label in LABELS]
    printed.append(["mean", *(f"{sum(row) / 7:.3f}" for row in PRINTED_FAD.values())])
    vocoder = read_run_config(config.vocoder)
    commands = "\n".join(command(run) for run in [*bench.vqvaes.values(), *bench.snails.values()])
    parts_of_page = [
        "# The baseline and CMU's track B, trained alike and measured side by side",
        f"Written by `python benchmarks/baseline_cmu_b.py ../shared --runs {config.runs} --vocoder {config.vocoder} --clips "
        f"{config.clips} --seed {config.seed}` at commit {commit() or 'unknown'}. Reference "
        f"`{Path(bench.reference).name}`, embedding {config.embedding}, intervals of 95 % over the measured clips; real: "
        f"clips of `{Path(bench.floor).name}` at the same n. Distances are of another embedding and reference than the "
        "report's: compare rows and columns, not numbers, with its tables.",
        "## The runs",
        table(
            ["run", "parameters", "step", "batch", "clips seen", "learning rate", "precision", "seed"],
            [described(*each) for each in [*parts, *snails]],
        ),
        f"The vocoder of every sound: {vocoder.get('vocoder', 'vocos')} {vocoder.get('size', '')} at step "
        f"{load_vocoder(config.vocoder)[2]:,}, trained apart. Data and settings:",
        f"```\n{commands}\n```",
        "## Table 3: the VQ-VAE, conditioned and not",
        table3(bench),
        "Means over clips. The public copy of CMU's code divides sums of batch means by the number of clips, except for the "
        "MSE: the printed cross-entropies and latent differences are probably sixteen times too small, a batch being 16. "
        "The cross-entropy printed for the held-out clips is, to the digit, also that of another model in their Table 4.",
        claims(bench),
        "Below 1, conditioning helps. The report says that it lowers both.",
        "## Where quality is lost",
        "Real clips of the reference through the vocoder alone, and through VQ-VAE and vocoder, against those very clips "
        "(0 is perfect, and there is no chance of drawing in it); then sounds that were drawn. Silent clips are measured too.",
        overall,
        "FD by label, of the round trips:",
        by_label(there_and_back),
        "## PixelSNAIL: how well codes are foretold",
        drawing(bench),
        "The two learn different codes: an easier code book is foretold better and need not sound better.",
        "## Table 2: by label",
        f"FD of {config.clips} drawn sounds a label, seeds {config.seed} to {config.seed + config.clips - 1}.",
        by_label(drawn),
        "TrainingClips as its label by the embedding's tagger:",
        by_label(drawn, "accuracy", 2),
        "The report's own (FAD with VGGish; which clips it is of, and how many, it does not say):",
        table(["label", *PRINTED_FAD], printed),
    ]
    seen = config.out.with_name(f"{config.out.stem}_seen.md")
    if seen.is_file():
        parts_of_page.append(seen.read_text(encoding="utf-8").rstrip())
    write_text(config.out, "\n\n".join(parts_of_page) + "\n")
    print(overall)


if __name__ == "__main__":
    try:
        main(tyro.cli(Benchmark))
    except UserError as error:
        sys.exit(f"baseline_cmu_b: {error}")

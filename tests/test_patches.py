"""Causal patches and the autoencoder of their latents: causality, sampling, guidance, the flow, the components."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from foleybox.lab.core.losses import roughness  # noqa: E402
from foleybox.lab.patches.autoencoder import Autoencoder, AutoencoderConfig, MelDiscriminator, fold, unfold  # noqa: E402
from foleybox.lab.patches.losses import flow_matching, pooled_mel_distance  # noqa: E402
from foleybox.lab.patches.train_patches import flow_loss, random_mid_clip_starts  # noqa: E402
from foleybox.lab.patches.transformer import (  # noqa: E402
    MID_CLIP,
    START,
    FlowHead,
    Patches,
    PatchesConfig,
    Stream,
    draw,
    flow,
    flow_times,
    redraw,
    step_coefficients,
)

SMALL = PatchesConfig(latent=6, width=24, heads=3, layers=2, head_width=16, head_layers=2, dropout=0.0)


@pytest.fixture
def model() -> Patches:
    torch.manual_seed(0)
    model = Patches(SMALL).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # nothing stays at its zero of the start
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_no_context_depends_on_its_own_latent_or_a_later_one(model: Patches) -> None:
    latents, label = torch.randn(1, 12, 6).double(), torch.tensor([2])
    whole = model(latents, label, torch.tensor([START]))
    for place in range(12):
        other = latents.clone()
        other[:, place] += 1
        changed = (model(other, label, torch.tensor([START])) - whole).abs().amax((0, 2))
        assert changed[: place + 1].max() == 0
        assert place == 11 or changed[place + 1 :].min() > 1e-9


def test_a_stream_computes_the_contexts_of_the_whole_sequence(model: Patches) -> None:
    latents, label = torch.randn(3, 9, 6).double(), torch.tensor([0, 7, 3])
    for first in (START, MID_CLIP):
        whole = model(latents, label, torch.full((3,), first))
        stream = Stream(model, label, first)
        for place in range(9):
            torch.testing.assert_close(stream.context(), whole[:, place], rtol=0, atol=1e-12)
            stream.add(latents[:, place])


def test_label_and_start_token_change_the_context_of_every_position(model: Patches) -> None:
    latents = torch.randn(1, 5, 6).double()
    one = model(latents, torch.tensor([1]), torch.tensor([START]))
    assert (one - model(latents, torch.tensor([4]), torch.tensor([START]))).abs().amax(2).min() > 1e-6
    assert (one - model(latents, torch.tensor([1]), torch.tensor([MID_CLIP]))).abs().amax(2).min() > 1e-6


def test_a_stream_with_a_window_forgets_what_lies_before_it(model: Patches) -> None:
    """With one layer; each further layer reaches a window further back."""
    shallow = Patches(PatchesConfig(**{**vars(SMALL), "layers": 1})).double().eval()
    contexts = []
    for begin in (torch.zeros(1, 6).double(), torch.ones(1, 6).double()):
        torch.manual_seed(3)
        stream = Stream(shallow, torch.tensor([0]), window=4)
        context = torch.zeros(1)
        for place in range(8):
            context = stream.context()
            stream.add(begin if place == 0 else torch.randn(1, 6).double())
        contexts.append(context)
    torch.testing.assert_close(contexts[0], contexts[1], rtol=0, atol=0)


def test_what_is_drawn_does_not_depend_on_the_batch_it_is_drawn_in(model: Patches) -> None:
    noise, label = torch.randn(4, 7, 6).double(), torch.tensor([0, 1, 2, 3])
    together = draw(model, label, noise, steps=5, guidance=1.3)
    alone = draw(model, label[2:3], noise[2:3], steps=5, guidance=1.3)
    torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-10)


def test_a_longer_draw_begins_with_the_shorter_one(model: Patches) -> None:
    noise, label = torch.randn(2, 9, 6).double(), torch.tensor([0, 5])
    torch.testing.assert_close(draw(model, label, noise)[:, :4], draw(model, label, noise[:, :4]), rtol=0, atol=1e-12)


def test_going_on_from_given_latents_draws_what_would_have_come(model: Patches) -> None:
    noise, label = torch.randn(1, 8, 6).double(), torch.tensor([6])
    whole = draw(model, label, noise)
    rest = draw(model, label, noise[:, 3:], given=whole[:, :3])
    torch.testing.assert_close(rest, whole[:, 3:], rtol=0, atol=1e-10)


def test_guidance_of_one_is_none_and_of_zero_ignores_the_label(model: Patches) -> None:
    noise = torch.randn(1, 4, 6).double()
    label, none = torch.tensor([1]), torch.tensor([model.no_label])
    torch.testing.assert_close(draw(model, label, noise, guidance=0.0), draw(model, none, noise), rtol=0, atol=1e-10)
    assert (draw(model, label, noise) - draw(model, label, noise, guidance=2.0)).abs().max() > 1e-6


def test_guidance_from_a_time_on_leaves_the_steps_before_it_alone(model: Patches) -> None:
    """Four steps begin at 0, 0.38, 0.71 and 0.92: from 1 on is none of them, from 0.92 the last, from 0.3 all but one."""
    noise, label = torch.randn(1, 4, 6).double(), torch.tensor([1])
    plain, *guided = (
        draw(model, label, noise, steps=4, guidance=2.0, guided_from=since) for since in (1.0, 0.9, 0.5, 0.3, 0.0)
    )
    torch.testing.assert_close(plain, draw(model, label, noise, steps=4), rtol=0, atol=1e-12)
    torch.testing.assert_close(guided[-1], draw(model, label, noise, steps=4, guidance=2.0), rtol=0, atol=1e-12)
    assert all((one - other).abs().max() > 1e-6 for one, other in itertools.pairwise([plain, *guided]))


def test_the_flow_learns_a_gaussian_conditioned_on_its_mean() -> None:
    """x ~ N(mean, 0.25): what is drawn has that mean and that spread."""
    torch.manual_seed(0)
    head = FlowHead(PatchesConfig(latent=1, width=1, head_width=32, head_layers=2))
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(250):
        mean = torch.randn(256, 1)
        loss = flow_loss(head, mean + 0.5 * torch.randn(256, 1), mean, draws=2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mean in (-1.0, 1.0):
        with torch.no_grad():
            drawn = flow(head, torch.randn(4000, 1), torch.full((4000, 1), mean))
        assert abs(float(drawn.mean()) - mean) < 0.1
        assert 0.4 < float(drawn.std()) < 0.6


def test_twelve_steps_keep_the_spread_of_a_gaussian_of_any_width() -> None:
    """The head replaced by the exact speed of N(0, s^2): what is left is the error of the steps. Euler's are at 0.87."""
    torch.manual_seed(0)

    class Exact(FlowHead):
        def __init__(self, spread: float) -> None:
            super().__init__(PatchesConfig(latent=1, width=1))
            self.variance = spread**2
            self.context_mlp = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]

        def time_embedding(self, time: Any) -> Any:
            return time[:, None]

        def forward(self, point: Any, conditioning: Any) -> Any:
            t = conditioning
            return point * (t * self.variance - (1 - t)) / ((1 - t) ** 2 + t**2 * self.variance)

    for spread in (1.0, 0.5, 0.2):
        with torch.no_grad():
            drawn = flow(Exact(spread), torch.tensor([[1.0], [-2.0]]), torch.zeros(2, 1))
        assert 0.95 < float(drawn[0] / spread) < 1.02
        assert float(drawn[1] / drawn[0]) == pytest.approx(-2, abs=1e-4)


def test_the_solver_is_exact_for_a_velocity_that_changes_linearly() -> None:
    """Speed 1 + 2 t: the true way is t + t^2. Only the first step, Euler's, is off, by the square of its length."""
    clock = flow_times(6)
    point, last = 0.0, 0.0
    for now, (lead, lead_of_last) in zip(clock, step_coefficients(6)):
        speed = 1 + 2 * now
        point, last = point + lead * speed + lead_of_last * last, speed
    assert point == pytest.approx(2 - clock[1] ** 2, abs=1e-12)


def test_from_a_start_time_the_flow_goes_the_rest_of_the_way_and_no_more() -> None:
    class Clock(FlowHead):
        """A speed that is the time itself: from s to 1 a point moves by (1 - s²) / 2."""

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)  # no weights

        def time_embedding(self, time: Tensor) -> Tensor:
            return time[:, None].expand(-1, 6)

        def context_mlp(self, context: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
            return torch.zeros(len(context), 6)

        def forward(self, point: Tensor, conditioning: Tensor) -> Tensor:
            return conditioning[:, :1].expand_as(point)

    head = Clock()
    since = torch.tensor([0.0, 0.25, 0.9])
    moved = flow(head, torch.ones(3, 4), torch.zeros(3, 2), steps=40, start_time=since)
    torch.testing.assert_close(moved, (1 + (1 - since**2) / 2)[:, None].expand(3, 4), atol=2e-3, rtol=0)


def redrawn(model: Patches, latents: Tensor, since: float) -> Tensor:
    torch.manual_seed(3)
    two = torch.tensor([1.0, 1.5]).double()
    return redraw(
        model,
        latents,
        torch.tensor([0, 6]),
        torch.full((2,), since).double(),
        guidance=two,
        guided_from=0.3,
        temperature=torch.ones(2),
    )


def test_what_is_redrawn_from_the_end_of_the_flow_is_the_recording(model: Patches) -> None:
    latents = torch.randn(2, 9, model.config.latent).double()
    torch.testing.assert_close(redrawn(model, latents, 0.9999), latents, atol=0.01, rtol=0)
    assert (redrawn(model, latents, 0.3) - latents).abs().mean() > 0.1


def test_what_is_redrawn_from_noise_alone_knows_the_latents_before_it_and_not_its_own(model: Patches) -> None:
    latents = torch.randn(2, 9, model.config.latent).double()
    other = latents.clone()
    other[:, 5] += 3
    one, two = redrawn(model, latents, 0.0), redrawn(model, other, 0.0)
    torch.testing.assert_close(one[:, :6], two[:, :6])
    assert (one[:, 6:] - two[:, 6:]).abs().amax((0, 2)).gt(1e-4).all()


def test_the_loss_of_the_true_velocity_of_a_known_point_is_zero() -> None:
    """With a single target x, the speed at (point, t) is (x - point) / (1 - t) whatever the noise was."""
    torch.manual_seed(0)
    x, time = torch.full((64, 3), 2.0), torch.rand(64) * 0.9
    loss = flow_matching(lambda point, t: (x - point) / (1 - t), x, time[:, None], time, torch.randn(64, 3))
    assert float(loss) < 1e-6


def test_sequences_with_a_mid_clip_start_are_valid_as_far_as_they_go() -> None:
    torch.manual_seed(0)
    latents = torch.arange(10.0)[None, :, None].repeat(200, 1, 1)
    moved, counted, first = random_mid_clip_starts(latents, 0.5)
    assert 60 < int((first == MID_CLIP).sum()) < 140
    for row, places, begin in zip(moved[:, :, 0], counted, first):
        kept = row[places]
        assert kept.tolist() == list(range(int(kept[0]), 10))
        assert (kept[0] == 0) == (begin == START)


# --- the autoencoder ----------------------------------------------------------------------------------------------


def test_folding_and_unfolding_is_the_identity_and_keeps_frames_together() -> None:
    x = torch.arange(24.0).reshape(1, 3, 8)
    torch.testing.assert_close(unfold(fold(x, 4), 4), x)
    assert fold(x, 4)[0, :, 0].tolist() == [0, 8, 16, 1, 9, 17, 2, 10, 18, 3, 11, 19]


TINY = AutoencoderConfig(bands=3, latent=5, width=8, fine=8, coarse_layers=1, fine_layers=1)


def test_the_components_give_patches_back_that_lie_on_as_many_directions() -> None:
    torch.manual_seed(0)
    patches = torch.randn(40, 20, 5) @ torch.randn(5, 12)  # patches of 3 bands x 4 frames on 5 directions
    mel = unfold(patches.transpose(1, 2), 4) * 3 - 6
    model = Autoencoder(TINY)
    model.components.fit(mel)
    latents = model.encode(mel)
    torch.testing.assert_close(model.components.decode(latents), mel, rtol=0, atol=1e-3)
    assert float(latents.square().mean()) == pytest.approx(1, abs=0.02)
    spread = latents.flatten(0, 1).std(0)
    assert (spread[:-1] >= spread[1:]).all()  # the more a component matters, the larger it stays


def test_what_components_lose_is_what_the_dropped_directions_hold() -> None:
    torch.manual_seed(0)
    mel = torch.randn(30, 3, 40)
    wide, narrow = Autoencoder(replace(TINY, latent=12)), Autoencoder(TINY)
    for model in (wide, narrow):
        model.components.fit(mel)
    torch.testing.assert_close(wide.components.decode(wide.encode(mel)), mel, rtol=0, atol=1e-4)
    torch.testing.assert_close(wide.components.axes[:, :5], narrow.components.axes, rtol=0, atol=1e-5)
    lost = mel - narrow.components.decode(narrow.encode(mel))
    assert 0.3 < float(lost.square().mean()) < 0.7  # 7 of 12 directions of nearly equal variance, the lesser ones


def test_the_fine_structure_is_a_function_of_the_noise() -> None:
    torch.manual_seed(0)
    model = Autoencoder(TINY).eval()
    torch.nn.init.normal_(model.decoder.head.weight)
    latents, noise = torch.randn(1, 6, 5), torch.randn(1, 24, 8)
    assert torch.equal(model(latents, noise), model(latents, noise))
    assert (model(latents, noise) - model(latents, -noise)).abs().max() > 1e-3


def test_averaged_mels_hardly_differ_by_fine_structure_but_by_level() -> None:
    torch.manual_seed(0)
    mel = torch.randn(4, 100, 64)
    other_noise, louder = torch.randn(4, 100, 64), mel + 1
    assert pooled_mel_distance(mel, other_noise) < 0.35
    assert pooled_mel_distance(mel, louder) == pytest.approx(1.0, abs=1e-5)


def test_roughness_is_the_mean_step_between_frames() -> None:
    assert float(roughness(torch.tensor([[0.0, 1.0, -1.0]]))) == 1.5


def test_the_discriminator_distinguishes_bands() -> None:
    """The same pattern lower or higher in the picture gets another score."""
    torch.manual_seed(0)
    discriminator = MelDiscriminator()
    mel = torch.full((1, 100, 64), -6.0)
    low, high = mel.clone(), mel.clone()
    low[:, 16:24], high[:, 64:72] = 0.0, 0.0
    assert abs(float((discriminator(low)[0].mean() - discriminator(high)[0].mean()).detach())) > 1e-6

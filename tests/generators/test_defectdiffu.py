"""DefectDiffu: architecture, losses, words and guidance (brief §4.6), on a tiny transformer."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from tiny_dit import CHANNELS, SIDE, TEXT_WIDTH, TOKENS, plain_dit, random, texts, tiny_model

from defect_core.errors import InputError
from defect_core.generators.defectdiffu.ancestral import Chain, chain_of
from defect_core.generators.defectdiffu.guidance import branches, draw, guided
from defect_core.generators.defectdiffu.model import DefectDiT, Prediction, raised_logits
from defect_core.generators.defectdiffu.text import Conditions, HashedWords, encode_pairs
from defect_core.generators.defectdiffu.training import (
    Weights,
    attention_ratio,
    drop_words,
    raw_ratio,
    total_loss,
    unfocused,
    variance_bound,
)
from defect_core.training.loop import bf16_autocast

ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
TIMES = torch.tensor([3, 700])


@pytest.fixture(scope="module")
def model() -> DefectDiT:
    return tiny_model()


def _latents(count=2, side=SIDE, seed=0):
    return random(count, CHANNELS, side, side, seed=seed)


def _square(*sides):
    masks = torch.zeros(len(sides), 1, SIDE, SIDE)
    for row, side in enumerate(sides):
        masks[row, :, :side, :side] = 1
    return masks


# architecture


@torch.no_grad()
def test_without_cross_attention_and_with_equal_conditions_it_is_the_plain_dit():
    plain, labels = plain_dit(), torch.tensor([1, 4])
    expected = plain(_latents(), TIMES, labels).sample
    vector = plain.transformer_blocks[0].norm1.emb.class_embedder(labels)
    answer = tiny_model(disturbed=False).denoise(_latents(), TIMES, [vector] * 3)
    assert torch.allclose(torch.cat([answer.noise, answer.variance], 1), expected, atol=1e-5)
    disturbed = tiny_model().denoise(_latents(), TIMES, [vector] * 3)
    assert not torch.allclose(disturbed.noise, answer.noise, atol=1e-3)


@torch.no_grad()
def test_maps_sum_to_one_over_the_tokens_and_to_the_number_of_blocks_in_all(model):
    maps = model(_latents(), TIMES, texts(2)).maps
    assert maps.shape == (2, 2, 4, TOKENS)
    assert torch.allclose(maps.sum(-1), torch.ones(2, 2, 4), atol=1e-5)
    assert torch.allclose(maps.sum(1).mean(1).sum(-1), torch.full((2,), 2.0), atol=1e-5)


@torch.no_grad()
def test_every_part_is_modulated_by_its_own_text_alone(model):
    def modulations(conditions):
        seen = []
        layers = [block.norm1.linear for block in model.dit.transformer_blocks] + [model.dit.proj_out_1]
        hooks = [layer.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for layer in layers]
        model(_latents(), TIMES, conditions)
        for hook in hooks:
            hook.remove()
        return seen

    before = modulations(texts(2))
    for part, blocks in enumerate([{0, 1}, {2, 3}, {4, 5, 6}]):
        changed = list(texts(2))
        changed[part] = changed[part] + 1
        after = modulations(Conditions(*changed))
        assert {i for i in range(7) if not torch.equal(before[i], after[i])} == blocks


@torch.no_grad()
def test_the_defect_text_alone_is_what_the_cross_attention_reads(model):
    seen = []
    hooks = [layer.key.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for layer in model.cross]
    model(_latents(), TIMES, texts(2))
    model(_latents(), TIMES, texts(2)._replace(product=texts(2).product + 1, fusion=texts(2).fusion - 1))
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])


@pytest.mark.parametrize("side", [8, 16])
@torch.no_grad()
def test_the_mask_is_a_latent_of_the_images_shape(side):
    answer = tiny_model(side)(_latents(side=side), TIMES, texts(2))
    assert answer.mask.shape == answer.noise.shape == answer.variance.shape == (2, CHANNELS, side, side)


@torch.no_grad()
def test_patches_are_put_back_where_they_came_from(model):
    whole = torch.arange(2 * CHANNELS * SIDE * SIDE, dtype=torch.float32).reshape(2, CHANNELS, SIDE, SIDE)
    patches = whole.unfold(2, 2, 2).unfold(3, 2, 2)  # [B, C, rows, columns, 2, 2]
    tokens = patches.permute(0, 2, 3, 4, 5, 1).reshape(2, TOKENS, -1)
    assert torch.equal(model._unpatchify(tokens, whole.shape, CHANNELS), whole)


@pytest.mark.parametrize(
    "around", [nullcontext, partial(bf16_autocast, torch.device("cpu"))], ids=["plain", "bf16_autocast"]
)
def test_gradient_checkpointing_changes_no_gradient(model, around):
    gradients = []
    for used in (False, True):
        model.gradient_checkpointing = used
        model.zero_grad()
        with around():
            mask = model(_latents(), TIMES, texts(2)).mask
        mask.float().square().mean().backward()
        gradients.append(model.cross[0].query.weight.grad.clone())
    model.gradient_checkpointing = False
    model.zero_grad()
    assert gradients[0].abs().max() > 0
    assert torch.allclose(*gradients, atol=1e-7)


@pytest.mark.parametrize("split", [(3, 3, 1), (0, 3, 3)])
def test_a_split_that_does_not_fit_the_depth_is_refused(split):
    with pytest.raises(InputError, match="three numbers that add up to 6"):
        DefectDiT(plain_dit(), TEXT_WIDTH, split)


def test_a_split_of_ones_own_is_kept():
    model = DefectDiT(plain_dit(), TEXT_WIDTH, (1, 3, 2))
    assert len(model.cross) == 3
    assert model(_latents(), TIMES, texts(2)).maps.shape[1] == 3


# losses


def _maps(seed=0):
    return random(2, 2, 4, TOKENS, seed=seed).softmax(-1)


@pytest.mark.parametrize("seed", range(5))
def test_the_ratio_lies_between_2_and_8_and_is_its_raw_value_inside(seed):
    maps, masks = _maps(seed), _square(2, 4)
    masks[0] = (random(1, SIDE, SIDE, seed=seed) > 1.5).float()
    raw, held = raw_ratio(maps, masks, 1e-3), attention_ratio(maps, masks, 1e-3)
    assert ((held >= 2) & (held <= 8)).all()
    inside = (raw > 2) & (raw < 8)
    assert inside.any() and torch.equal(held[inside], raw[inside])


def test_the_ratio_is_attention_outside_over_attention_inside():
    maps = torch.full((1, 2, 4, TOKENS), 1 / TOKENS)
    # a 4 x 4 square covers 4 of the 16 tokens: 12 / 4
    assert float(raw_ratio(maps, _square(4), 0.0)) == pytest.approx(3.0)
    # one cell is enough for its token to count
    assert float(raw_ratio(maps, _square(1), 0.0)) == pytest.approx(15.0)


def test_the_ratio_does_not_depend_on_the_level_of_the_map():
    maps, masks = _maps(), _square(2, 4)
    assert torch.allclose(raw_ratio(100 * maps, masks, 1e-9), raw_ratio(maps, masks, 1e-9), rtol=1e-4)


def test_a_full_mask_gives_2_and_an_empty_one_8():
    ratio = attention_ratio(_maps(), _square(SIDE, 0), 1e-3)
    assert ratio.tolist() == [2, 8]


def _loss(model, masks, weights, seed=3, mask_latents=None):
    chain, latents = chain_of(ALPHAS), _latents()
    noise = random(*latents.shape, seed=seed)
    targets = latents if mask_latents is None else mask_latents
    return total_loss(model, chain, latents, masks, targets, texts(2), torch.tensor([50, 700]), noise, weights)


def test_an_empty_mask_has_no_defect_loss_and_a_defect_adds_to_it(model):
    bare = Weights(mask=0, variance=0)
    with torch.no_grad():
        empty, some = _loss(model, _square(0, 0), bare), _loss(model, _square(4, 4), bare)
        doubled = _loss(model, torch.ones(2, 1, SIDE, SIDE), bare)
    assert some > empty
    assert float(doubled) == pytest.approx(3 * float(empty), rel=1e-5)  # R is 2 where all is defect


def test_the_ratio_passes_a_gradient_to_the_attention_only_when_asked(model):
    found = []
    for detach in (True, False):
        model.zero_grad()
        zeroed = tiny_model(disturbed=False)  # the maps reach the noise through the zero layer not at all
        _loss(zeroed, _square(2, 3), Weights(mask=0, variance=0, detach_ratio=detach)).backward()
        found.append(float(zeroed.cross[0].query.weight.grad.abs().max()))
    assert found[0] == 0 and found[1] > 0


def test_the_mask_loss_is_zero_at_the_target(model):
    with torch.no_grad():
        chain, latents, noise = chain_of(ALPHAS), _latents(), random(2, CHANNELS, SIDE, SIDE, seed=3)
        times = torch.tensor([50, 700])
        level = ALPHAS[times].float()[:, None, None, None]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            target = model(level.sqrt() * latents + (1 - level).sqrt() * noise, times, texts(2)).mask.float()
        losses = [_loss(model, _square(0, 0), Weights(mask=weight, variance=0), 3, target) for weight in (0, 10)]
        away = _loss(model, _square(0, 0), Weights(mask=10, variance=0), 3, target + 1)
    assert chain.steps == 1000
    assert float(losses[1] - losses[0]) == pytest.approx(0, abs=1e-3)
    assert float(away - losses[0]) == pytest.approx(10, rel=1e-2)


def test_the_variance_bound_is_zero_at_the_true_posterior_and_leaves_the_noise_alone(model):
    chain, latents, noise = chain_of(ALPHAS), _latents().double(), random(2, CHANNELS, SIDE, SIDE, seed=3).double()
    times = torch.tensor([50, 700])
    level = ALPHAS[times][:, None, None, None]
    noised = level.sqrt() * latents + (1 - level).sqrt() * noise
    answer = model(_latents(), TIMES, texts(2))
    true = answer._replace(noise=noise.requires_grad_(True), variance=torch.full_like(noise, -1.0))
    assert variance_bound(chain, latents, noised, true, times).abs().max() < 1e-9
    wrong = true._replace(variance=torch.full_like(noise, 0.5).requires_grad_(True))
    bound = variance_bound(chain, latents, noised, wrong, times).sum()
    bound.backward()
    assert bound > 0 and noise.grad is None and wrong.variance.grad.abs().max() > 0


def test_the_variance_bound_is_the_divergence_of_the_two_steps():
    chain, latents, noise = chain_of(ALPHAS), _latents().double(), random(2, CHANNELS, SIDE, SIDE, seed=3).double()
    times, level = torch.tensor([50, 700]), ALPHAS[torch.tensor([50, 700])][:, None, None, None]
    noised = level.sqrt() * latents + (1 - level).sqrt() * noise
    answer = Prediction(0.5 * noise, torch.tanh(noised), noise, noise)
    logs = (chain.log_variances[0][times].view(-1, 1, 1, 1), chain.log_variance(answer.variance, times))
    spreads = [(0.5 * part).exp() for part in logs]
    clean = chain.clean(noised, answer.noise, times)
    posterior = torch.distributions.Normal(chain.posterior_mean(latents, noised, times), spreads[0])
    step = torch.distributions.Normal(chain.posterior_mean(clean, noised, times), spreads[1])
    expected = torch.distributions.kl_divergence(posterior, step).flatten(1).mean(1) / math.log(2)
    assert torch.allclose(variance_bound(chain, latents, noised, answer, times), expected, rtol=1e-6)


def test_the_weight_of_a_step_is_capped(model):
    with torch.no_grad():
        plain, capped = (_loss(model, _square(0, 0), Weights(mask=0, variance=0, cap=cap)) for cap in (1.0, 1.01))
    # both steps lie above 1.01 or below it: step 50 nearly keeps its weight, step 700 takes the cap
    assert 1 < float(capped / plain) <= 1.01 + 1e-6


# words


def test_words_are_left_out_as_often_as_asked_and_good_stays_good():
    pairs = [("screw", "scratch"), ("screw", "good")] * 4000
    told = drop_words(pairs, 0.2, 0.2, torch.Generator().manual_seed(0))
    defective = [new for old, new in zip(pairs, told, strict=True) if old[1] == "scratch"]
    counts = {pair: defective.count(pair) / len(defective) for pair in set(defective)}
    assert sum(new[0] == "" for new in told) / len(told) == pytest.approx(0.2, abs=0.02)
    assert counts[("screw", "good")] + counts[("", "good")] == pytest.approx(0.2, abs=0.02)
    assert counts[("", "scratch")] == pytest.approx(0.2 * 0.8, abs=0.02)  # what eq. 4's second direction asks for
    assert all(new[1] == "good" for old, new in zip(pairs, told, strict=True) if old[1] == "good")
    assert {new[0] for new in told} == {"", "screw"}


def test_a_word_always_means_the_same_and_words_differ():
    encoder = HashedWords()
    first, again, other, both = encoder(
        ["a photo of scratch", "a photo of a scratch", "a photo of dent", "a photo of scratch dent"]
    )
    assert torch.equal(first, again)
    assert abs(float(first @ other)) < 0.5
    assert float(first @ both) > 0.5 and float(other @ both) > 0.5
    assert float(both.norm()) == pytest.approx(1)
    assert torch.equal(encoder([""])[0], torch.zeros(encoder.width))
    # the value itself is fixed: weights trained with it lie in the package
    assert (encoder(["scratch"])[0, :8] > 0).tolist() == FIRST_OF_SCRATCH


FIRST_OF_SCRATCH = [bool(bit) for bit in (0, 1, 0, 0, 1, 1, 0, 0)]


def test_the_fusion_sentence_is_rebuilt_from_the_words_that_are_left():
    left = encode_pairs(HashedWords(), [("", "scratch"), ("screw", "good"), ("screw", "scratch")])
    assert torch.equal(left.fusion[0], left.defect[0]) and torch.equal(left.defect[0], left.defect[2])
    assert torch.equal(left.product[0], torch.zeros(HashedWords().width))
    assert not torch.equal(left.fusion[1], left.fusion[2])


# guidance and sampling


class _Asked:
    """A network that answers by its conditions alone and notes what it was asked."""

    def __init__(self, model):
        self.model, self.asked = model, []

    def __call__(self, latents, times, conditions, region=None):
        self.asked.append(conditions)
        return self.model(latents, times, conditions, region)


def _guide(model, pairs, product_scale, strength):
    conditions = encode_pairs(_narrow, [pair for pair in pairs for _ in range(2)])
    with torch.no_grad():
        return guided(model, _latents(), torch.tensor(300), conditions, product_scale, torch.full((2,), strength)).noise


def _narrow(sentences):
    return HashedWords(TEXT_WIDTH)(sentences)


def _plain(model, pair):
    with torch.no_grad():
        return model(_latents(), torch.tensor([300, 300]), encode_pairs(_narrow, [pair] * 2)).noise


# where the defect belongs


def test_a_region_draws_the_attention_there_and_zeros_say_nothing(model):
    region = _square(2, 4)
    with torch.no_grad():
        plain = model(_latents(), TIMES, texts(2))
        told = model(_latents(), TIMES, texts(2), region)
        silent = model(_latents(), TIMES, texts(2), torch.zeros_like(region))
    inside = torch.nn.functional.max_pool2d(region, 2).flatten(1)[:, None, None]
    assert torch.allclose(told.maps.sum(-1), torch.ones(2, 2, 4), atol=1e-5)
    assert ((told.maps * inside).sum(-1) > (plain.maps * inside).sum(-1)).all()
    assert all(torch.equal(a, b) for a, b in zip(silent, plain, strict=True))
    assert not torch.allclose(told.noise, plain.noise, atol=1e-4)


@torch.no_grad()
def test_the_ratio_is_that_of_the_attention_without_the_region():
    bare, region = tiny_model(disturbed=False), _square(2, 4)  # nothing flows from one block's maps to the next
    plain = bare(_latents(), TIMES, texts(2)).maps
    told = bare(_latents(), TIMES, texts(2), region).maps
    assert torch.allclose(unfocused(told, raised_logits(region, 2)), plain, atol=1e-5)
    assert not torch.allclose(told, plain, atol=1e-2)


def test_only_the_branch_that_knows_the_defect_is_told_the_region(model):
    class Told(_Asked):
        def __call__(self, latents, times, conditions, region=None):
            self.region = region
            return super().__call__(latents, times, conditions, region)

    told, region = Told(model), _square(2, 4)
    conditions = encode_pairs(_narrow, [pair for pair in branches("a", "b", "three_branch") for _ in range(2)])
    with torch.no_grad():
        guided(told, _latents(), torch.tensor(300), conditions, 1.0, torch.ones(2), region)
    assert torch.equal(told.region, torch.cat([torch.zeros(4, 1, SIDE, SIDE), region]))


def test_scales_of_zero_and_one_give_the_plain_answers(model):
    three = branches("screw", "scratch", "three_branch")
    assert torch.allclose(_guide(model, three, 0.0, 0.0), _plain(model, ("", "good")), atol=1e-5)
    assert torch.allclose(_guide(model, three, 1.0, 0.0), _plain(model, ("screw", "good")), atol=1e-5)
    assert torch.allclose(_guide(model, three, 0.0, 1.0), _plain(model, ("", "scratch")), atol=1e-5)
    two = branches("screw", "scratch", "two_branch")
    assert torch.allclose(_guide(model, two, 0.7, 0.0), _plain(model, ("screw", "good")), atol=1e-5)
    assert torch.allclose(_guide(model, two, 0.7, 1.0), _plain(model, ("screw", "scratch")), atol=1e-5)


def test_the_answer_is_affine_in_both_scales(model):
    three = branches("screw", "scratch", "three_branch")
    corners = {(p, d): _guide(model, three, p, d) for p in (0.0, 2.0) for d in (0.0, 3.0)}
    assert torch.allclose(_guide(model, three, 1.0, 1.5), sum(corners.values()) / 4, atol=1e-4)
    assert not torch.allclose(corners[0.0, 0.0], corners[0.0, 3.0], atol=1e-3)


def test_good_as_the_defect_makes_the_strength_idle(model):
    three = branches("screw", "good", "three_branch")
    assert torch.allclose(_guide(model, three, 1.0, 0.0), _guide(model, three, 1.0, 5.0), atol=1e-4)


def test_zero_shot_asks_for_the_targets_product_and_the_sources_defect(model):
    asked = _Asked(model)
    _guide(asked, branches("flange", "snag", "three_branch"), 1.0, 1.0)
    told = asked.asked[0]
    expected = [HashedWords(TEXT_WIDTH)([text])[0] for text in ("a photo of flange", "a photo of snag")]
    assert torch.equal(told.product[2], expected[0]) and torch.equal(told.defect[4], expected[1])
    assert (told.product[[0, 1, 4, 5]] == 0).all()


def test_a_respaced_chain_keeps_the_levels_and_both_ends():
    short = chain_of(ALPHAS).respaced(50)
    assert short.steps == 50 and short.timesteps[0] == 0 and short.timesteps[-1] == 999
    assert torch.equal(short.alpha_bars, ALPHAS[short.timesteps])
    assert torch.allclose(torch.cumprod(1 - short.betas, 0), short.alpha_bars)
    assert torch.equal(chain_of(ALPHAS).respaced(1000).timesteps, torch.arange(1000))


def test_a_step_with_the_true_noise_has_the_posteriors_mean_and_the_learned_spread():
    chain, step = chain_of(ALPHAS).respaced(50), 30
    clean, noise = _latents().double(), random(2, CHANNELS, SIDE, SIDE, seed=9).double()
    level = chain.alpha_bars[step]
    noised = level.sqrt() * clean + (1 - level).sqrt() * noise
    still = torch.zeros_like(clean)
    mean = chain.step_back(noised, noise, still, step, still)
    index = torch.tensor([step, step])
    assert torch.allclose(mean, chain.posterior_mean(clean, noised, index))
    one = torch.ones_like(clean)
    for variance, expected in ((-1.0, chain.log_variances[0]), (1.0, chain.log_variances[1])):
        spread = chain.step_back(noised, noise, variance * one, step, one) - mean
        assert torch.allclose(spread, (expected[step] / 2).exp() * one)
    assert torch.allclose(chain.step_back(noised, noise, one, 0, one), chain.clean(noised, noise, 0 * index))


def test_the_posterior_is_bayes_rule_for_two_gaussians():
    chain, step = chain_of(ALPHAS), 400
    beta, before = chain.betas[step], chain.before[step]
    # q(x_{t-1} | x_0) times q(x_t | x_{t-1}): precisions add
    precision = 1 / (1 - before) + (1 - beta) / beta
    clean, noised = torch.tensor([[1.3]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64)
    mean = (before.sqrt() * clean / (1 - before) + (1 - beta).sqrt() * noised / beta) / precision
    assert torch.allclose(chain.posterior_mean(clean, noised, torch.tensor([step])), mean)
    assert math.exp(chain.log_variances[0][step]) == pytest.approx(float(1 / precision))


class _Knows:
    """A network that returns the noise between its input and one clean image, and the step as its mask."""

    def __init__(self, clean: torch.Tensor, chain: Chain) -> None:
        self.clean, self.chain, self.steps = clean, chain, []

    def __call__(self, latents, times, conditions, region=None):
        step = int((self.chain.timesteps == times[0]).nonzero())
        self.steps.append(step)
        level = self.chain.alpha_bars[step].float()
        clean = self.clean.repeat(len(latents) // len(self.clean), 1, 1, 1)
        noise = (latents - level.sqrt() * clean) / (1 - level).sqrt()
        model = tiny_model()(latents, times, conditions)
        return model._replace(noise=noise, variance=0 * noise - 1, mask=torch.full_like(noise, float(step)))


@pytest.mark.parametrize(("start", "given"), [(20, False), (12, True)])
def test_the_walk_ends_at_the_clean_image_and_averages_the_last_masks(start, given):
    chain = chain_of(ALPHAS).respaced(20)
    clean = _latents(seed=4)
    knows = _Knows(clean, chain)
    conditions = encode_pairs(_narrow, [pair for pair in branches("a", "b", "three_branch") for _ in range(2)])
    noises = iter(random(30, *clean.shape, seed=8))
    drawn = draw(knows, chain, clean if given else None, start, lambda: next(noises), conditions, 1.0, torch.ones(2), 5)
    assert knows.steps == list(range(start - 1, -1, -1))
    assert torch.allclose(drawn.image, clean, atol=1e-3)
    assert torch.allclose(drawn.mask, torch.full_like(clean, 2.0))  # steps 4, 3, 2, 1, 0

"""What a mixer promises, for every aggregator with every fusion: it begins as the image alone, a study is what it is
alone or among others, and nothing behind a gap is looked at."""

import itertools

import pytest
import torch
from torch import Tensor

from models.studies import AGGREGATORS, FUSIONS, NUMERIC, StudyMixer
from utils.batch import Inputs

CHANNELS, SIZE, KINDS = 8, (3, 4), 3
COLUMNS = [NUMERIC, 3, NUMERIC, 2]
EVERY = pytest.mark.parametrize("names", list(itertools.product(AGGREGATORS, FUSIONS)), ids="-".join)
MASK = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0], [1, 0, 0]]).bool()
TABLE_MASK = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()


def mixer_of(names: tuple[str | None, str | None], trained: bool = True) -> StudyMixer:
    """trained: no parameter is zero any more."""
    torch.manual_seed(0)
    aggregator, fusion = names
    mixer = StudyMixer(CHANNELS, 2, aggregator, KINDS, fusion, COLUMNS, view_width=8, table_width=8, rank=4)
    if trained:
        for parameter in mixer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return mixer


def studies(seed: int = 0) -> tuple[Tensor, Tensor, Inputs]:
    """Vectors, maps and inputs of the images that are there."""
    torch.manual_seed(seed)
    count, (rows, _) = int(MASK.sum()), MASK.shape
    numbers, codes = torch.randn(rows, 4), torch.randint(0, 3, (rows, 4)).float()
    table = torch.where(torch.tensor(COLUMNS) == NUMERIC, numbers, codes) * TABLE_MASK
    kinds = torch.tensor([[0, 1, 2], [0, 2, 0], [1, 0, 1], [0, 0, 0], [2, 0, 0]])
    inputs = Inputs(torch.empty(count, 1), MASK, kinds, table, TABLE_MASK)
    return torch.randn(count, CHANNELS), torch.randn(count, CHANNELS, *SIZE), inputs


def in_all_slots(vectors: Tensor, maps: Tensor, inputs: Inputs, filling: float) -> tuple[Tensor, Tensor, Inputs]:
    """The same studies with something in every slot, as an exported graph is given them."""
    mask = inputs.view_mask
    wide = [torch.full((*mask.shape, *x.shape[1:]), filling) for x in (vectors, maps)]
    for slots, x in zip(wide, (vectors, maps), strict=True):
        slots[mask] = x
    kinds = torch.where(mask, inputs.view_kind, 10**6)
    table = torch.where(inputs.table_mask, inputs.table, filling)
    image = torch.empty(mask.numel(), 1)
    return *(slots.flatten(0, 1) for slots in wide), Inputs(image, mask, kinds, table, inputs.table_mask)


def one_study(vectors: Tensor, maps: Tensor, inputs: Inputs, row: int) -> tuple[Tensor, Tensor, Inputs]:
    first = int(inputs.view_mask[:row].sum())
    images = slice(first, first + int(inputs.view_mask[row].sum()))
    return vectors[images], maps[images], Inputs(inputs.image[images], *(x[row : row + 1] for x in inputs[1:]))


@EVERY
def test_a_study_of_one_image_begins_as_the_image(names):
    vectors, maps, _ = studies()
    mixer, alone = mixer_of(names, trained=False), Inputs.of_images(vectors)
    table = torch.randint(0, 2, (len(vectors), 4)).float()
    for mask in (torch.zeros(len(vectors), 4), torch.ones(len(vectors), 4), torch.rand(len(vectors), 4) < 0.5):
        inputs = alone._replace(table=table, table_mask=mask.bool())
        assert torch.equal(mixer(vectors, maps, inputs), vectors)
    assert torch.equal(mixer(vectors, maps, alone), vectors)
    elsewhere = alone._replace(
        view_mask=torch.tensor([[False, True]] * len(vectors)), view_kind=torch.tensor([[0, 2]] * len(vectors))
    )
    assert torch.equal(mixer(vectors, maps, elsewhere), vectors)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(names, dtype):
    """By autocast and by the type of the parameters; it begins as the image there too."""
    vectors, maps, inputs = studies()
    known = torch.ones(len(vectors), 4)
    alone = Inputs.of_images(vectors)._replace(table=known, table_mask=known.bool())
    expected = mixer_of(names)(vectors, maps, inputs)
    with torch.autocast("cpu", dtype):
        halves = vectors.to(dtype)
        assert torch.equal(mixer_of(names, trained=False)(halves, maps.to(dtype), alone), halves.float())
        near = mixer_of(names)(halves, maps.to(dtype), inputs)
    torch.testing.assert_close(near.float(), expected, rtol=0.05, atol=0.15)
    whole = mixer_of(names).to(dtype)(vectors.to(dtype), maps.to(dtype), inputs)
    assert whole.dtype == dtype
    torch.testing.assert_close(whole.float(), expected, rtol=0.05, atol=0.15)


@EVERY
def test_a_trained_mixer_is_another_function(names):
    """Or the other tests would hold for a constant."""
    vectors, maps, inputs = studies()
    mixer = mixer_of(names)
    y = mixer(vectors, maps, inputs)
    other_kinds = inputs._replace(view_kind=(inputs.view_kind + 1) % 3)
    other_table = inputs._replace(table=(inputs.table + 1) % 2)
    assert not torch.allclose(y[0], mixer(vectors, maps, other_kinds)[0], atol=1e-3)
    assert not torch.allclose(y[0], mixer(vectors, maps, other_table)[0], atol=1e-3)
    assert not torch.allclose(y[4], vectors[-1], atol=1e-3)


@EVERY
def test_order_of_views_and_empty_slots_do_not_matter(names):
    vectors, maps, inputs = studies()
    mixer = mixer_of(names)
    expected = mixer(vectors, maps, inputs)
    wide, wide_maps, slots = in_all_slots(vectors, maps, inputs, 7.0)
    order = torch.tensor([2, 0, 1])

    def permuted(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, 3))[:, order].flatten(0, 1)

    turned = slots._replace(view_mask=MASK[:, order], view_kind=slots.view_kind[:, order])
    torch.testing.assert_close(mixer(permuted(wide), permuted(wide_maps), turned), expected, rtol=0, atol=1e-6)
    more = inputs._replace(
        view_mask=torch.cat([torch.zeros(5, 1, dtype=torch.bool), MASK], 1),
        view_kind=torch.cat([torch.ones(5, 1, dtype=torch.int64), inputs.view_kind], 1),
    )
    torch.testing.assert_close(mixer(vectors, maps, more), expected, rtol=0, atol=1e-6)


@EVERY
def test_a_study_alone_is_what_it_is_among_others(names):
    vectors, maps, inputs = studies()
    mixer = mixer_of(names)
    together = mixer(vectors, maps, inputs)
    for row in range(len(MASK)):
        alone = mixer(*one_study(vectors, maps, inputs, row))
        torch.testing.assert_close(alone, together[row : row + 1], rtol=0, atol=1e-6)


@EVERY
def test_weights_are_shares_of_what_is_there(names):
    vectors, maps, inputs = studies()
    mixer = mixer_of(names)
    of_views, of_columns = mixer.view_weights(vectors, maps, inputs), mixer.table_weights(vectors, maps, inputs)
    assert of_views[~MASK].eq(0).all() and of_views.ge(0).all()
    torch.testing.assert_close(of_views.sum(1), MASK.any(1).float())
    assert (of_columns is not None) == (names[1] in ("attention", "cross_attention"))
    if of_columns is not None:
        assert of_columns[~TABLE_MASK].eq(0).all() and of_columns.ge(0).all()
        torch.testing.assert_close(of_columns.sum(1), TABLE_MASK.any(1).float())
        assert of_columns[0].std() > 1e-4


@pytest.mark.parametrize("name", ["mean", "attention", "learned_weight"])
def test_weights_of_views_are_those_of_the_sum(name):
    vectors, maps, inputs = studies()
    mixer = mixer_of((name, None))
    inputs = inputs._replace(table=torch.zeros(5, 0), table_mask=torch.zeros(5, 0, dtype=torch.bool))
    weights = mixer.view_weights(vectors, maps, inputs)
    slots = torch.zeros(*MASK.shape, CHANNELS)
    slots[MASK] = vectors
    adapted = mixer.adapter(slots, inputs.view_kind)
    expected = torch.stack([sum(w * v for w, v in zip(weights[i], adapted[i])) for i in range(5)])
    expected[3] = mixer.no_image.detach()
    torch.testing.assert_close(mixer(vectors, maps, inputs), expected)


def test_views_of_one_kind_share_its_weight():
    """Two images of a kind of weight 1/2 are 1/4 each."""
    mixer = mixer_of(("learned_weight", None), trained=False)
    vectors, maps, inputs = studies()
    inputs = inputs._replace(view_kind=torch.tensor([[0, 0, 1], [0, 2, 0], [1, 0, 1], [0, 0, 0], [2, 0, 0]]))
    expected = torch.tensor([[0.25, 0.25, 0.5], [0, 1, 0], [0.5, 0, 0.5], [0, 0, 0], [1, 0, 0]])
    torch.testing.assert_close(mixer.view_weights(vectors, maps, inputs), expected)


def gradients(mixer: StudyMixer, vectors: Tensor, maps: Tensor, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    """(outputs, gradients of parameters, vectors, maps and table) of Σ y²."""
    mixer.zero_grad()
    leaves = {"vectors": vectors.clone(), "maps": maps.clone(), "table": inputs.table.clone()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    y = mixer(leaves["vectors"], leaves["maps"], inputs._replace(table=leaves["table"]))
    y.square().sum().backward()
    found = {**dict(mixer.named_parameters()), **leaves}
    return y.detach(), {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in found.items()}


@EVERY
def test_nothing_behind_a_gap_is_looked_at(names):
    """NaN in absent slots and unknown cells: bit-equal results and gradients, which are 0 where nothing is."""
    mixer, (vectors, maps, inputs) = mixer_of(names), studies()
    (y, found), (y_nan, found_nan) = (
        gradients(mixer, *in_all_slots(vectors, maps, inputs, filling)) for filling in (0.0, float("nan"))
    )
    assert torch.equal(y, y_nan) and y.isfinite().all()
    for name, gradient in found.items():
        assert gradient.isfinite().all() and torch.equal(gradient, found_nan[name]), name
    absent = ~MASK.flatten()
    assert found_nan["vectors"][absent].eq(0).all() and found_nan["maps"][absent].eq(0).all()
    assert found_nan["table"][~TABLE_MASK].eq(0).all()
    assert found_nan["vectors"][~absent].ne(0).any()
    ragged, found_ragged = gradients(mixer, vectors, maps, inputs)
    torch.testing.assert_close(ragged, y, rtol=0, atol=1e-6)
    for name, gradient in found_ragged.items():
        expected = found[name][~absent] if name in ("vectors", "maps") else found[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@EVERY
def test_studies_without_a_table_teach_nothing_about_it(names):
    mixer, (vectors, maps, inputs) = mixer_of(names), studies()
    inputs = inputs._replace(table_mask=torch.zeros_like(TABLE_MASK))
    y, found = gradients(mixer, vectors, maps, inputs)
    of_table = {n: g for n, g in found.items() if n.split(".")[0] in ("tokens", "fusion", "table_places", "table")}
    assert len(of_table) > 4 and all(gradient.eq(0).all() for gradient in of_table.values())
    images_alone = mixer_of((names[0], None), trained=False)
    images_alone.load_state_dict({n: t for n, t in mixer.state_dict().items() if n in images_alone.state_dict()})
    assert torch.equal(y, images_alone(vectors, maps, inputs._replace(table=torch.zeros(5, 0))))


@EVERY
def test_a_study_of_nothing_is_finite(names):
    mixer, (vectors, maps, inputs) = mixer_of(names), studies()
    nothing = inputs._replace(view_mask=torch.zeros_like(MASK), table_mask=torch.zeros_like(TABLE_MASK))
    y, found = gradients(mixer, vectors[:0], maps[:0, :, :1, :1], nothing)
    assert torch.equal(y, mixer.no_image.detach().expand(5, -1))
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert found["no_image"].ne(0).all() and all(g.eq(0).all() for n, g in found.items() if n != "no_image")
    y, found = gradients(mixer, vectors[:0], maps[:0, :, :1, :1], nothing._replace(table_mask=TABLE_MASK))
    assert y.isfinite().all() and all(gradient.isfinite().all() for gradient in found.values())
    assert found["tokens.numbers"].ne(0).any() and torch.equal(y[4], mixer.no_image.detach())

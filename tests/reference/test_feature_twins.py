"""Feature distillation against its slow twins on random maps: functions, the losses of recipes, and their gradients."""

import feature_twins as slow
import pytest
import torch

from lsdali import functional as fast
from lsdali.methods.shared.features import AttentionTransfer, FeatureConfig, FeatureMatch, Hint, Relational
from lsdali.models.student import Outputs

SHAPES = [((4, 3, 4, 4), (4, 5, 4, 4)), ((4, 3, 4, 6), (4, 5, 2, 3)), ((3, 2, 2, 2), (3, 2, 4, 4))]


def maps(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_attention(shapes, seed):
    student, teacher = maps(shapes, seed)
    assert fast.attention_distance(student, teacher).item() == pytest.approx(
        slow.attention(student.tolist(), teacher.tolist()), rel=1e-12
    )


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_hint_with_its_regressor(shapes, seed):
    """The loss of a recipe: the head that reads the student's stage, then the distance."""
    student, teacher = maps(shapes, seed)
    head = Hint().head("last", student.shape[1], teacher.shape[1]).double()
    weight, bias = (p.detach().flatten(1) if p.ndim > 1 else p.detach() for p in head.parameters())
    expected = slow.hint(slow.regressed(student.tolist(), weight.tolist(), bias.tolist()), teacher.tolist())
    found = Hint().distance(head({"last": student}, torch.nn.Identity()), teacher)
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_relations(seed):
    student, teacher = (x.mean((2, 3)) for x in maps(((6, 4, 3, 3), (6, 7, 2, 2)), seed))
    lengths, angles = fast.relation_distances(student, teacher)
    expected = slow.relation(student.tolist(), teacher.tolist())
    assert (lengths.item(), angles.item()) == pytest.approx(expected, rel=1e-10)
    assert fast.relation_distances(student, teacher, angles=False)[1].item() == 0


def test_relations_of_samples_that_are_one_have_finite_gradients():
    (student, teacher) = (x.mean((2, 3)) for x in maps(((5, 4, 3, 3), (5, 4, 3, 3))))
    student[1] = student[0]
    student.requires_grad_()
    sum(fast.relation_distances(student, teacher)).backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("kind", [Hint(), AttentionTransfer(), Relational()], ids=lambda kind: kind.name)
def test_a_match_is_the_weighted_sum_over_its_pairs(kind):
    """Two stages of one student and two of another teacher; the gradient is that of finite differences."""
    own, theirs = {"a": 3, "b": 4}, {"x": 5, "y": 2}
    config = FeatureConfig(stages=("a", "b"), teacher_stages=("x", "y"), loss=kind)
    match = FeatureMatch(config, own, theirs)
    heads = {name: head.double() for name, head in match.heads().items()}
    a, b, x, y = maps(((4, 3, 4, 4), (4, 4, 2, 2), (4, 5, 4, 4), (4, 2, 2, 2)))

    def loss(a):
        stages = {"a": a, "b": b}
        outputs = {name: head(stages, torch.nn.Identity()) for name, head in heads.items()}
        return match.loss(Outputs(torch.zeros(4, 2), torch.zeros(4, 1), outputs), {"x": x, "y": y})

    by_hand = sum(
        kind.distance(heads[f"feature_{name}"]({name: s}, torch.nn.Identity()), t)
        for name, s, t in (("a", a, x), ("b", b, y))
    )
    torch.testing.assert_close(loss(a), kind.weight * by_hand)
    assert torch.autograd.gradcheck(loss, (a.clone().requires_grad_(),))

"""SAN's attention against its slow twin and plain loops: outputs, gradients, running statistics."""

import copy

import pytest
import san_twins as slow
import torch
import torch.nn.functional as F

from lsdali.models.families.san import Pairwise, Patchwise, attend


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize(("kind", "twin"), [(Pairwise, slow.pairwise), (Patchwise, slow.patchwise)])
def test_attention_modules(kind, twin, kernel, layout):
    torch.manual_seed(0)
    ours = kind(32, 4, 16, kernel).double()
    theirs = copy.deepcopy(ours)
    ours.to(memory_format=layout)
    x = torch.randn(2, 32, 6, 4, dtype=torch.float64)
    upstream = torch.randn(2, 16, 6, 4, dtype=torch.float64)
    found = []
    for module, run, given in ((ours, ours, x.to(memory_format=layout)), (theirs, lambda y: twin(theirs, y), x)):
        given = given.clone().requires_grad_()
        out = run(given)
        out.backward(upstream)
        found.append([out, given.grad, *(p.grad for p in module.parameters()), *module.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def weights_for(kernel, *shape, dtype=torch.float64):
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for _ in range(kernel**2)]


def test_attention_is_the_sum_over_mirrored_windows():
    torch.manual_seed(0)
    values, weights = torch.randn(1, 5, 4, 16, dtype=torch.float64), weights_for(3, 1, 5, 4, 2)
    out = attend(values, weights, 3)
    mirrored = F.pad(values.movedim(-1, 1), (1, 1, 1, 1), mode="reflect")
    for c in range(16):
        for h in range(5):
            for v in range(4):
                terms = [w[0, h, v, c % 2] * mirrored[0, c, h + n // 3, v + n % 3] for n, w in enumerate(weights)]
                torch.testing.assert_close(out[0, h, v, c], sum(terms))


def test_gradients_of_attention():
    torch.manual_seed(0)
    values = torch.randn(1, 3, 2, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, *w: attend(v, w, 3), (values, *weights_for(3, 1, 3, 2, 2)))


def test_half_precision_is_added_up_in_float32():
    """49 terms of 1 + 1/128, half of them negative after the first 25: bfloat16 itself cannot count so far."""
    values = torch.ones(1, 4, 4, 8, dtype=torch.bfloat16)
    weights = [torch.full((1, 4, 4, 1), 1 + 1 / 128 if n < 25 else -1.0, dtype=torch.bfloat16) for n in range(49)]
    assert attend(values, weights, 7).dtype == torch.bfloat16
    torch.testing.assert_close(
        attend(values, weights, 7).float(), torch.full((1, 4, 4, 8), 1 + 25 / 128), atol=4e-3, rtol=0
    )

"""Independent references of the tests: plain maths, and pictures of odd sizes."""

import torch

# tiny beside huge, one row, one column, prime sides, smaller than a patch
ODD_SIZES = [(33, 70), (16, 16), (5, 7), (100, 16), (16, 113), (61, 53)]


def dense_attention(q, k, v, lengths):
    """Softmax attention [T, H, K] under a dense block mask: the oracle of every kernel."""
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.as_tensor(lengths)).to(q.device)
    mask = ids[:, None] == ids[None, :]
    scores = torch.einsum('qhk,shk->hqs', q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum('hqs,shk->qhk', weights, v)


def perturb(module, seed=0, scale=0.1):
    """Move every parameter off its start: zero biases and unit scales hide faults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(scale * noise.to(parameter))
    return module


def pictures(sizes, dtype=torch.float64, seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(channels, h, w, generator=generator, dtype=dtype) for h, w in sizes]


def on_canvas(images, *, height, width, fill=0.0):
    """Pictures in the upper left corners of one canvas, which carries their sizes."""
    canvas = torch.full((len(images), 3, height, width), fill, dtype=images[0].dtype)
    for slot, image in zip(canvas, images, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    canvas.image_sizes = [tuple(image.shape[1:]) for image in images]
    return canvas

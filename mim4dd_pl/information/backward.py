"""The backward pass of a host and an add-on, balanced by their gradients on the pixels; for any training loop."""

import math

import torch
from torch import Tensor

from mim4dd_pl.information.losses import balance


def balanced_backward(host_loss: Tensor, term_loss: Tensor, pixels: Tensor, share: float = 0.3) -> Tensor:
    r"""Accumulate the gradients of a host and of a term that gets its share of the pixel gradient.

    .. math::

        L_{host} + f\, L_{term}, \qquad f = \lambda\, \|\nabla_S L_{host}\| \,/\, \|\nabla_S L_{term}\|

    Takes the place of ``loss.backward()``: adds to ``.grad`` of every leaf. What the term alone depends on, its heads
    and critic, gets the term's own gradient, as if f were 1: how fast they learn does not depend on the balance. The
    factor counts as a constant. f is zero where the term has no gradient on the pixels, lambda where the host has none.

    Gradients of other processes are not added: neither hooks nor DistributedDataParallel see this pass.

    Source: how the term joins a host here (see :func:`~mim4dd_pl.information.losses.balance`); the paper, Shang et al.
    2023 (arXiv:2312.16627), Eq. 2.17, adds it with a literal weight.

    Args:
        host_loss: Shape (), with its graph.
        term_loss: Shape (), with its graph, such as ``term(...).loss``; the two graphs may share parts.
        pixels: S, the synthetic images of any shape, or what makes them, as both losses see it; requires a gradient.
        share: lambda, at least 0: how long the term's pixel gradient will be, in lengths of the host's.

    Returns:
        The factor f, shape ().

    Raises:
        ValueError: If a loss is not of shape (), ``pixels`` requires no gradient, or ``share`` is out of range.
    """
    for name, loss in (("host_loss", host_loss), ("term_loss", term_loss)):
        if not isinstance(loss, Tensor) or loss.ndim:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"{name} must be a tensor of shape (), got {got}.")
    if not pixels.requires_grad:
        raise ValueError("pixels must require a gradient, got a tensor that does not.")
    if not 0 <= share < math.inf:
        raise ValueError(f"share must be at least 0 and finite, got {share}.")
    joint = {*_leaves(host_loss), *_leaves(pixels)}
    host, term = _gradients(host_loss, pixels, keep_graph=True), _gradients(term_loss, pixels, keep_graph=False)
    factor = balance(host[pixels], term[pixels], share)
    for gradients, weight in ((host, 1.0), (term, factor)):
        for leaf, gradient in gradients.items():
            if leaf.is_leaf:
                leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                leaf.grad += weight * gradient if leaf in joint else gradient
    return factor


def _gradients(loss: Tensor, pixels: Tensor, keep_graph: bool) -> dict[Tensor, Tensor]:
    """Of ``loss`` on the pixels and on every leaf it depends on."""
    if not loss.requires_grad:
        return {pixels: torch.zeros_like(pixels)}
    inputs = list(dict.fromkeys((pixels, *_leaves(loss))))
    found = torch.autograd.grad(loss, inputs, retain_graph=keep_graph, allow_unused=True, materialize_grads=True)
    return dict(zip(inputs, found, strict=True))


def _leaves(value: Tensor) -> list[Tensor]:
    """The tensors whose ``.grad`` a backward pass from ``value`` reaches."""
    if value.is_leaf:
        return [value] if value.requires_grad else []
    leaves, seen, ahead = [], set(), [value.grad_fn]
    while ahead:
        if (node := ahead.pop()) is not None and node not in seen:
            seen.add(node)
            ahead.extend(before for before, _ in node.next_functions)
            if node.name().endswith("AccumulateGrad"):
                leaves.append(node.variable)  # type: ignore[attr-defined]
    return leaves

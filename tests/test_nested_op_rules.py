"""Functions of traced code: what models write between their layers, cut into levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn
from toy_backbones import SIZE, THIRDS, Tokens, Toy, close, cut, with_holes

from hierclass.errors import BackboneError

Run = Callable[[Any, Tensor], Tensor]


class Middle(nn.Module):
    """Layers, parameters and buffers, and code that uses them: `run(self, x)`."""

    def __init__(self, run: Run, **parts: nn.Module | Tensor):
        super().__init__()
        self.run = run
        for name, value in parts.items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
            elif isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.5 + 0.1)


def check(backbone: nn.Module, *sizes: tuple[int, int, int], mixing: bool = False) -> None:
    """What holds for every cut network, on images of these sizes.

    One level is the dense network; three levels are the dense one with holes, unless functions are `mixing` channels;
    refining to a level is running it directly.
    """
    backbone.eval()
    network, single = cut(backbone, THIRDS), cut(backbone, (1.0,))
    holed, order, holes = with_holes(backbone, THIRDS)
    counts = network.num_features
    assert 0 < counts[0] < counts[1] < counts[2]
    assert holes > 0
    with torch.no_grad():
        for batch, size in enumerate((SIZE, *sizes), 1):
            image = torch.randn(batch, *size)
            assert close(single.features_all(image)[0], backbone(image))
            assert mixing or close(network.features_all(image)[-1], holed(image)[:, order])
            everything = network.forward_all(image)
            state = network.start(image)
            for level in range(3):
                assert close(network.refine(state), everything[level])
                assert close(network(image, level), everything[level])


# Images: (B, 16, 8, 8) → (B, 16, 8, 8)


def gate(self: Any, x: Tensor) -> Tensor:
    left, right = self.conv(x).chunk(2, dim=1)
    return left * torch.sigmoid(right)


def split_sizes(self: Any, x: Tensor) -> Tensor:
    few, many = torch.split(x, [4, 12], dim=1)
    return torch.cat([many, self.conv(few)], dim=1)


def sliced(self: Any, x: Tensor) -> Tensor:
    return torch.cat((x[:, 8:], self.conv(x[:, :8])), 1)


def partial(self: Any, x: Tensor) -> Tensor:
    return self.conv(x[:, :, 1:-1, ::2]) + x[..., 1:-1, ::2]


def windows(self: Any, x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    _, height, width, _ = x.shape
    parts = self.linear(window_partition(x, (4, 4)))
    return window_reverse(parts, (4, 4), height, width).permute(0, 3, 1, 2)


def windows_by_hand(self: Any, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1).contiguous()
    x = self.linear(x.view(-1, 16, channels))
    x = x.view(batch, height // 4, width // 4, 4, 4, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(batch, channels, height, width)


def shifted(self: Any, x: Tensor) -> Tensor:
    moved = torch.roll(x, shifts=(-2, -1), dims=(2, 3))
    return torch.roll(self.conv(moved), (2, 1), (2, 3))


def shuffled(self: Any, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.reshape(batch, 4, channels // 4, height, width).transpose(1, 2).reshape(batch, -1, height, width)


def blended(self: Any, x: Tensor) -> Tensor:
    branches = torch.stack([self.first(x), self.second(x)], dim=1)
    weights = self.logits.softmax(0).view(1, 2, 1, 1, 1)
    return (branches * weights).sum(1)


def squeezed(self: Any, x: Tensor) -> Tensor:
    return x * F.relu(self.conv(x.mean((2, 3), keepdim=True))).expand_as(x)


def spatial(self: Any, x: Tensor) -> Tensor:
    both = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
    return x * both.sum(1, keepdim=True).sigmoid()


def pooled(self: Any, x: Tensor) -> Tensor:
    small = F.avg_pool2d(x, 2)
    return x + F.interpolate(self.conv(small), scale_factor=2.0, mode="nearest")


def padded(self: Any, x: Tensor) -> Tensor:
    return self.conv(F.pad(x, (1, 1, 1, 1)))


def compared(self: Any, x: Tensor) -> Tensor:
    return x * F.normalize(x, dim=1) + x.softmax(dim=1)


def positions_of_image(self: Any, x: Tensor) -> Tensor:
    return x + self.table


def overwritten(self: Any, x: Tensor) -> Tensor:
    """In-place results that nobody takes (NaFlexViT adds its positions so)."""
    x = self.conv(x)
    x.add_(self.table)
    x.mul_(2)
    return x.relu()


def partly_overwritten(self: Any, x: Tensor) -> Tensor:
    x = self.conv(x)
    x[:, :, :4].add_(1)
    return x.relu()


def scaled(self: Any, x: Tensor) -> Tensor:
    return x + self.conv(x) * self.gamma.view(1, -1, 1, 1)


def scaled_by_reshape(self: Any, x: Tensor) -> Tensor:
    return x + self.conv(x).mul_(self.gamma.reshape(1, 16, 1, 1))


def selective(self: Any, x: Tensor) -> Tensor:
    """Two branches, weighed channel by channel (SKNet)."""
    weights = self.conv(x.mean((2, 3), keepdim=True)).reshape(-1, 2, 16, 1, 1).softmax(1)
    return (torch.stack((x, self.other(x)), 1) * weights).sum(dim=1)


def pairs(self: Any, x: Tensor) -> Tensor:
    both = self.conv(x).unflatten(1, (16, 2))
    return both[:, :, 0] * both[:, :, 1]


def with_coordinates(self: Any, x: Tensor) -> Tensor:
    return self.conv(torch.cat((x, self.grid.expand(x.shape[0], -1, -1, -1)), 1))


def attended_places(self: Any, x: Tensor) -> Tensor:
    """Queries against a mean over places, head by head, with einsum."""
    batch, _, height, width = x.shape
    heads = self.conv(x).reshape(batch, 4, 4, height * width)
    weights = torch.einsum("bhcn,bhcm->bhnm", heads, heads).softmax(-1)
    return torch.einsum("bhnm,bhcm->bhcn", weights, heads).reshape(batch, 16, height, width)


def conv(inputs: int = 16, outputs: int = 16, kernel: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel)


IMAGES: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "chunk and gate": (lambda: Middle(gate, conv=conv(16, 32)), True),
    "split into uneven parts": (lambda: Middle(split_sizes, conv=conv(4, 4)), True),
    "slices of channels": (lambda: Middle(sliced, conv=conv(8, 8)), True),
    "slices of places": (lambda: Middle(partial, conv=conv()), True),
    "windows of timm": (lambda: Middle(windows, linear=nn.Linear(16, 16)), True),
    "windows by hand": (lambda: Middle(windows_by_hand, linear=nn.Linear(16, 16)), True),
    "roll": (lambda: Middle(shifted, conv=conv(kernel=1)), True),
    "shuffle": (lambda: Middle(shuffled), True),
    "stack, softmax of a parameter and sum": (
        lambda: Middle(blended, first=conv(), second=conv(), logits=table(2)),
        True,
    ),
    "squeeze and expand_as": (lambda: Middle(squeezed, conv=conv()), True),
    "mean and maximum over channels": (lambda: Middle(spatial), True),
    "pool and interpolate": (lambda: Middle(pooled, conv=conv()), True),
    "pad": (lambda: Middle(padded, conv=conv(kernel=3)), True),
    "pad with a number": (
        lambda: Middle(
            lambda self, x: self.conv(self.pad(x)), conv=conv(kernel=3), pad=nn.ConstantPad2d(1, 0.5)
        ),
        True,
    ),
    "normalize and softmax over channels": (lambda: Middle(compared), True),
    "a table of positions": (lambda: Middle(positions_of_image, table=table(1, 16, 8, 8)), False),
    "overwritten in place": (lambda: Middle(overwritten, conv=conv(), table=table(16, 1, 1)), True),
    "layer scale": (lambda: Middle(scaled, conv=conv(), gamma=table(16)), True),
    "layer scale in place": (lambda: Middle(scaled_by_reshape, conv=conv(), gamma=table(16)), True),
    "branches weighed by channel": (lambda: Middle(selective, conv=conv(16, 32), other=conv()), True),
    "one gate for all channels": (lambda: Middle(lambda self, x: x * self.conv(x), conv=conv(16, 1)), True),
    "products of pairs": (lambda: Middle(pairs, conv=conv(16, 32)), True),
    "coordinates as channels": (
        lambda: Middle(with_coordinates, conv=conv(18, 16), grid=torch.rand(1, 2, 8, 8)),
        False,
    ),
    "interleaved channels": (
        lambda: Middle(lambda self, x: torch.stack((x, self.conv(x)), 2).flatten(1, 2)[:, :16], conv=conv()),
        True,
    ),
    "flipped channels": (lambda: Middle(lambda self, x: x + x.flip(1)), True),
    "mean over channels, added": (lambda: Middle(lambda self, x: x + x.mean(1, keepdim=True)), True),
    "patches as channels": (
        lambda: Middle(lambda self, x: self.conv(F.pixel_unshuffle(x, 2)), conv=conv(64, 16)),
        True,
    ),
    "patches unfolded": (
        lambda: Middle(
            lambda self, x: self.conv(F.unfold(x, 2, stride=2).reshape(-1, 64, 4, 4)), conv=conv(64, 16)
        ),
        False,
    ),
    "einsum over heads": (lambda: Middle(attended_places, conv=conv()), True),
}


@pytest.mark.parametrize("name", IMAGES)
def test_functions_over_images_are_cut(name: str) -> None:
    make, any_size = IMAGES[name]
    torch.manual_seed(0)
    check(Toy(make()), *([(3, 12, 16)] if any_size else []), mixing="over channels" in name)


def test_a_value_that_is_overwritten_in_part_is_refused() -> None:
    with pytest.raises(BackboneError, match="it overwrites a part of a value in place"):
        cut(Toy(Middle(partly_overwritten, conv=conv())), THIRDS)


# Tokens: (B, 16, 24) → (B, 16, 24)


def attention(self: Any, x: Tensor) -> Tensor:
    batch, tokens, channels = x.shape
    qkv = self.qkv(x).reshape(batch, tokens, 3, 6, 4).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    weights = ((query * 4**-0.5) @ key.transpose(-2, -1)).softmax(dim=-1)
    return x + self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, channels))


def fused_attention(self: Any, x: Tensor) -> Tensor:
    batch, tokens, channels = x.shape
    query, key, value = self.qkv(x).reshape(batch, tokens, 3, 6, 4).permute(2, 0, 3, 1, 4)
    heads = F.scaled_dot_product_attention(self.norm(query), self.norm(key), value)
    return x + self.proj(heads.transpose(1, 2).reshape(batch, tokens, channels))


def masked_attention(self: Any, x: Tensor) -> Tensor:
    batch, tokens, _ = x.shape
    query, key, value = (
        layer(x).view(batch, tokens, 6, 4).transpose(1, 2) for layer in (self.query, self.key, self.value)
    )
    heads = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)
    return self.proj(heads.transpose(1, 2).flatten(2))


def biased_attention(self: Any, x: Tensor) -> Tensor:
    """A bias for each head, looked up in a table by the distance of two tokens (Swin)."""
    batch, tokens, channels = x.shape
    query, key, value = self.qkv(x).reshape(batch, tokens, 3, 6, 4).permute(2, 0, 3, 1, 4).unbind(0)
    bias = self.table[self.index.view(-1)].view(16, 16, -1).permute(2, 0, 1).contiguous()
    weights = (query @ key.transpose(-2, -1) + bias.unsqueeze(0)).softmax(-1)
    return self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, channels))


def multi_query(self: Any, x: Tensor) -> Tensor:
    """One key and value for all heads (MobileNetV4)."""
    query = self.query(x).unflatten(2, (6, 4)).transpose(1, 2)
    key, value = (layer(x).unsqueeze(1).expand(-1, 6, -1, -1) for layer in (self.key, self.value))
    return x + self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def channel_attention(self: Any, x: Tensor) -> Tensor:
    """Channels of a head attend to each other (XCiT)."""
    batch, tokens, channels = x.shape
    qkv = self.qkv(x).reshape(batch, tokens, 3, 6, 4).permute(2, 0, 3, 4, 1)
    query, key, value = qkv.unbind(0)
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    weights = (query @ key.transpose(-2, -1) * self.temperature).softmax(dim=-1)
    return self.proj((weights @ value).permute(0, 3, 1, 2).reshape(batch, tokens, channels))


def class_token(self: Any, x: Tensor) -> Tensor:
    x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
    x = self.linear(x)
    return x[:, 1:] * x[:, :1]


def without_class_token(self: Any, x: Tensor) -> Tensor:
    x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
    token, rest = self.linear(x).split([1, 16], 1)
    return rest + token


def scaled_tokens(self: Any, x: Tensor) -> Tensor:
    return x + self.gamma * self.linear(x)


def scaled_by_one_number(self: Any, x: Tensor) -> Tensor:
    """A number made of two tables (differential attention)."""
    amount = torch.exp(torch.sum(self.left * self.right, dim=-1).float()).type_as(x)
    return x + amount * self.linear(x)


def functional_linear(self: Any, x: Tensor) -> Tensor:
    return F.linear(x, self.weight, self.bias) + F.linear(x, weight=self.weight)


def sizes(self: Any, x: Tensor) -> Tensor:
    heads = self.linear(x).view(x.size(0), -1, 6, x.size(-1) // 6)
    return heads.flip(1).reshape(x.size()) + heads.flatten(2).view(x.shape)


def rotated(self: Any, x: Tensor) -> Tensor:
    """Turn pairs of a head's channels by angles of the position (rotary embedding)."""
    batch, tokens, channels = x.shape
    heads = self.linear(x).reshape(batch, tokens, 6, 4).transpose(1, 2)
    turned = torch.stack([-heads[..., 1::2], heads[..., ::2]], -1).reshape(batch, 6, tokens, 4)
    heads = heads * self.cos + turned * self.sin
    return heads.transpose(1, 2).reshape(batch, tokens, channels)


def norm_by_hand(self: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.var(-1, keepdim=True) + 1e-6).sqrt() * self.gamma


def places_again(self: Any, x: Tensor) -> Tensor:
    image = x.transpose(1, 2).reshape(x.shape[0], 24, 4, 4)
    return x + self.conv(image).flatten(2).transpose(1, 2)


def linear(inputs: int = 24, outputs: int = 24) -> nn.Linear:
    return nn.Linear(inputs, outputs)


def distances() -> Tensor:
    return (torch.arange(16)[:, None] - torch.arange(16)[None]).abs()


TOKENS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "attention": (lambda: Middle(attention, qkv=linear(24, 72), proj=linear()), True),
    "fused attention": (
        lambda: Middle(fused_attention, qkv=linear(24, 72), proj=linear(), norm=nn.LayerNorm(4)),
        True,
    ),
    "attention with a mask": (
        lambda: Middle(
            masked_attention,
            query=linear(),
            key=linear(),
            value=linear(),
            proj=linear(),
            bias=table(6, 16, 16),
        ),
        False,
    ),
    "attention with looked-up biases": (
        lambda: Middle(
            biased_attention, qkv=linear(24, 72), proj=linear(), table=table(16, 6), index=distances()
        ),
        False,
    ),
    "one key for all heads": (
        lambda: Middle(multi_query, query=linear(), key=linear(24, 4), value=linear(24, 4), proj=linear()),
        True,
    ),
    "sizes": (lambda: Middle(sizes, linear=linear()), True),
    "channels attend to channels": (
        lambda: Middle(channel_attention, qkv=linear(24, 72), proj=linear(), temperature=table(6, 1, 1)),
        True,
    ),
    "class token and positions": (
        lambda: Middle(class_token, linear=linear(), token=table(1, 1, 24), positions=table(1, 17, 24)),
        False,
    ),
    "class token taken off": (
        lambda: Middle(without_class_token, linear=linear(), token=table(1, 1, 24)),
        False,
    ),
    "layer scale": (lambda: Middle(scaled_tokens, linear=linear(), gamma=table(24)), True),
    "scaled by one number": (
        lambda: Middle(scaled_by_one_number, linear=linear(), left=table(8), right=table(8)),
        True,
    ),
    "linear with a parameter": (
        lambda: Middle(functional_linear, weight=table(24, 24), bias=table(24)),
        True,
    ),
    "rotary embedding": (
        lambda: Middle(rotated, linear=linear(), cos=torch.rand(16, 4), sin=torch.rand(16, 4)),
        False,
    ),
    "layer norm by hand, over channels": (lambda: Middle(norm_by_hand, gamma=table(24)), True),
    "layer norm as a function, over channels": (
        lambda: Middle(lambda self, x: F.layer_norm(x, (24,))),
        True,
    ),
    "sums of tokens": (lambda: Middle(lambda self, x: x.cumsum(1) + x.mean(1, keepdim=True)), True),
    "the weight of an embedding": (
        lambda: Middle(lambda self, x: x + self.table.weight, table=nn.Embedding(16, 24)),
        False,
    ),
    "arithmetic": (lambda: Middle(lambda self, x: 1 - x**2 + 2 / (x.abs() + 1)), True),
    "tokens as an image": (lambda: Middle(places_again, conv=nn.Conv2d(24, 24, 3, padding=1)), False),
}


@pytest.mark.parametrize("name", TOKENS)
def test_functions_over_tokens_are_cut(name: str) -> None:
    make, any_size = TOKENS[name]
    torch.manual_seed(0)
    check(Tokens(make()), *([(3, 12, 16)] if any_size else []), mixing="over channels" in name)

"""The same function and the same gradient as PEFT's LoRA, over steps of SGD."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from reclora.configs import DeltaConfig
from reclora.modules import adapt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import LoraConfig, get_peft_model

STEPS, RATE = 25, 0.2


class Ranker(nn.Module):
    """A table, a picture and a linear layer, so that each sort of delta is in one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(30, 8)
        self.picture = nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 0))
        self.over = nn.Linear(16, 5)

    def forward(self, ids: Tensor, pixels: Tensor) -> Tensor:
        seen = self.picture(pixels).tanh().mean((2, 3))
        out: Tensor = self.over(torch.cat([self.users(ids), seen], 1))
        return out


def factors(kind: str, lora: nn.Module) -> tuple[Tensor, Tensor]:
    """PEFT's factors as ours stand: of a layer A (R, I) and B (O, R), of a table a (N, R) and
    B (R, D).
    """
    if kind == "users":
        a, b = lora.lora_embedding_A["default"], lora.lora_embedding_B["default"]
        return a.detach().T, b.detach().T
    a, b = lora.lora_A["default"].weight, lora.lora_B["default"].weight
    return a.detach().flatten(1), b.detach().flatten(1)


@pytest.mark.parametrize("rank_stabilised", [False, True])
@pytest.mark.parametrize(
    "names", [("users",), ("picture",), ("over",), ("users", "picture", "over")]
)
def test_steps_of_sgd_equal_those_of_peft(names: tuple[str, ...], rank_stabilised: bool) -> None:
    torch.manual_seed(0)
    model = Ranker()
    peft = get_peft_model(
        copy.deepcopy(model),
        LoraConfig(r=4, lora_alpha=6, target_modules=list(names), use_rslora=rank_stabilised),
    )
    configs = [
        DeltaConfig(
            (name,),
            "rows" if name == "users" else "low_rank",
            rank=4,
            alpha=6.0,
            rank_stabilised=rank_stabilised,
        )
        for name in names
    ]
    adapted = adapt(model, configs, ["only"])
    layers = {name: peft.base_model.model.get_submodule(name) for name in names}
    ours = {site.path: next(iter(site.deltas.values())) for site in adapted.sites}
    with torch.no_grad():
        for name in names:
            a, b = factors(name, layers[name])
            ours[name].get_parameter("a")[:-1] = a
            ours[name].get_parameter("b")[:-1] = b
    optimizers = [
        torch.optim.SGD((p for p in module.parameters() if p.requires_grad), lr=RATE)
        for module in (adapted, peft)
    ]
    generator = torch.Generator().manual_seed(1)
    first = None
    for _ in range(STEPS):
        ids = torch.randint(30, (20,), generator=generator)
        pixels = torch.randn(20, 3, 5, 6, generator=generator)
        wanted = torch.randn(20, 5, generator=generator)
        found = adapted(ids, pixels, segments=torch.zeros(20, dtype=torch.int64))
        theirs = peft(ids, pixels)
        torch.testing.assert_close(found, theirs, atol=1e-5, rtol=1e-5)
        first = found.detach() if first is None else first
        for optimizer, output in zip(optimizers, (found, theirs), strict=True):
            optimizer.zero_grad()
            torch.autograd.backward((output - wanted).square().mean())
            optimizer.step()
    for name in names:
        for factor, theirs in zip(("a", "b"), factors(name, layers[name]), strict=True):
            mine = ours[name].get_parameter(factor).detach()[:-1]
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
            assert mine.abs().sum() > 0, "both factors have moved from nothing or were random"

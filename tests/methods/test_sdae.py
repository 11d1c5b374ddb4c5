"""SdAE against its formulas in float64, one fold of one image at a time, and the promises of its settings."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import cli, one_line
from reference import cosine, decode, embed, encode, images, standardised, tiny
from torch import Tensor

from dsdmae_builtin.methods.sdae import Folded, SdAE
from dsdmae_cli.data.source import seeded
from dsdmae_cli.methods.base import StepInfo

CPU = torch.device("cpu")


def reference(method: SdAE, clean: Tensor, folds: Folded) -> float:
    w = {name: tensor.double() for name, tensor in method.state_dict().items()}
    errors = []
    for image, groups, keep in zip(clean.double(), folds.ids_folds, folds.ids_keep, strict=True):
        class_token, latents = encode(embed(image, w, "student.vit")[keep], w, "student.vit")
        decoded = decode(latents, class_token, keep, w)
        for fold in groups:
            _, told = encode(embed(image, w, "teacher.module.vit")[fold], w, "teacher.module.vit")
            told, guess = standardised(told), decoded[fold]
            by = list(zip(guess, told, strict=True))
            if method.settings.cosine == "channel":
                by = list(zip(guess.T, told.T, strict=True))
            errors.append(1 - sum(cosine(a, b) for a, b in by) / len(by))
    return float(sum(errors) / len(errors))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("method.cosine=channel",),
        ("backbone.class_token=true",),
        ("method.folds=1", "method.mask_ratio=0.5"),
        ("method.folds=5", "method.decoder_dim=16", "method.cosine=channel"),
    ],
    ids=" ".join,
)
def test_sdae_is_its_formulas(more: tuple[str, ...]) -> None:
    method = tiny(*more, name="sdae")
    clean = images()
    folds = method.corrupt(clean, seeded(CPU, 1))
    expected = reference(method, clean, folds)
    exact = copy.deepcopy(method).double()
    for losses, tolerance in ((exact(clean.double(), folds), 1e-6), (method(clean, folds), 2e-5)):
        assert losses.keys() == {"loss", "feature"}
        for name, value in losses.items():
            assert value.item() == pytest.approx(expected, rel=tolerance), name
            assert value.requires_grad == (name == "loss")


def test_folds_do_not_see_each_other_and_the_student_sees_none() -> None:
    """The teacher's features of one fold stand still while another fold's pixels, or the visible ones, change."""
    method = tiny(name="sdae")
    clean = images(1)
    folds = method.corrupt(clean, seeded(CPU, 1))
    before = method._both(clean, folds)
    for changed in range(4):  # a fold of three, or the visible patches
        ids = folds.ids_keep[0] if changed == 3 else folds.ids_folds[0, changed]
        other = clean.clone()
        for token in ids.tolist():
            y, x = 4 * (token // 4), 4 * (token % 4)
            other[:, :, y : y + 4, x : x + 4] += 1
        predicted, target, _ = method._both(other, folds)
        assert torch.equal(predicted, before[0]) == (changed != 3)
        for fold in range(3):
            assert torch.equal(target[fold], before[1][fold]) == (fold != changed)


def test_the_teacher_moves_once_an_epoch_from_weights_of_its_own() -> None:
    method = tiny(name="sdae")
    student, teacher = method.student.vit, method.teacher.module.vit
    assert torch.equal(student.pos_embed, teacher.pos_embed) is False  # `tiny` perturbs them both
    before = teacher.blocks[0].mlp.fc1.weight.clone()
    assert not torch.allclose(before, student.blocks[0].mlp.fc1.weight, atol=0.2)
    for step in range(1, 5):
        method.after_step(StepInfo(step, 40, 4, torch.zeros(())))
        assert torch.equal(teacher.blocks[0].mlp.fc1.weight, before) == (step < 4)
    # η has come a tenth of its way along half a cosine from 0.96 to 0.99.
    eta = 0.99 - 0.03 * (1 + torch.cos(torch.tensor(torch.pi / 10))) / 2
    moved = eta * before + (1 - eta) * student.blocks[0].mlp.fc1.weight
    torch.testing.assert_close(teacher.blocks[0].mlp.fc1.weight, moved)


@torch.no_grad()
def test_its_pictures_show_what_it_sees() -> None:
    method = tiny(name="sdae")
    clean = images(2)
    folds = method.corrupt(clean, seeded(CPU, 1))
    shown = method.show(clean, folds)
    assert list(shown) == ["student sees", "teacher, a fold", "cosine"]
    assert {tuple(rows.shape) for rows in shown.values()} == {(2, 3, 16, 16)}
    for name, tokens in (("student sees", 4), ("teacher, a fold", 4), ("cosine", 12)):
        coloured = (shown[name] != 0).any(dim=1).unflatten(1, (4, 4)).unflatten(3, (4, 4)).any(dim=4).any(dim=2)
        assert coloured.sum().item() == 2 * tokens


def test_too_many_folds_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    words = ("--method", "sdae", "--set", "method.folds=13", "--set", "data.image_size=16", "--dry-run")
    code, _, err = cli(capfd, "pretrain", *words)
    assert code == 2
    message = one_line(err)
    assert "method.folds = 13" in message
    assert "12 patches" in message

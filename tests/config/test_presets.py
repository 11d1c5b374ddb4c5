"""Presets: what each sets, and what one of each kind makes together."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import preset_names

from dsdmae_cli import plugins
from dsdmae_cli.config.compose import compose, load
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.presets import KINDS, presets_by_kind, read_preset
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import FINETUNE, PRETRAIN, SECTIONS, Loaded, Schema
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.settings.models import OptimSettings

# Resolved settings of the presets when each combination had a file of its own.
FROZEN: dict[str, dict[str, dict[str, Any]]] = json.loads((Path(__file__).parent / "presets.json").read_text())
METHODS = ("beit", "cae", "dsdmae", "lejepa", "mae", "maskfeat", "mocov3", "msa", "sdae", "tscae")
# Xu & Stirenko 2023, Table 1.
PAPER = (
    "dsdmae,cifar10,vit-tiny", "dsdmae,cifar10,vit-small", "dsdmae,cifar100,vit-tiny", "dsdmae,cifar100,vit-small",
    "dsdmae,stl10,vit-small", "dsdmae,stl10,vit-base",
)  # fmt: skip


def loaded(*presets: str, **more: Any) -> Loaded[Any]:
    return load(preset=presets, **{"environ": {}, **more})


def combination(name: str) -> list[str]:
    """The presets that stand for a file that was."""
    if name in presets_by_kind()["recipes"]:
        return [name]
    method = next((method for method in METHODS if name.startswith(f"{method}-")), "dsdmae")
    dataset, _, size = name.removeprefix(f"{method}-").partition("-")
    return [size, method, dataset]


def flat(settings: Any) -> dict[str, Any]:
    """{"section.key": value} as JSON knows it."""
    found = {f"{section}.{key}": value for section, table in tables(settings).items() for key, value in table.items()}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [name for name in FROZEN["pretrain"] if name != "all"])
def test_no_combination_that_had_a_file_is_lost(name: str) -> None:
    before = FROZEN["pretrain"]["all"] | FROZEN["pretrain"][name]
    found = flat(resolve(loaded(*combination(name)).settings))
    assert {key: found[key] for key in before} == before


@pytest.mark.parametrize("name", [name for name in FROZEN["finetune"] if name != "all"])
def test_no_recipe_of_fine_tuning_is_lost(name: str) -> None:
    recipe, _, dataset = name.partition("-")
    presets = [recipe, *([{"stl": "stl10"}.get(dataset, dataset)] if dataset else [])]
    before = FROZEN["finetune"]["all"] | FROZEN["finetune"][name]
    found = flat(resolve(compose(FINETUNE, preset=presets, environ={}).settings))
    assert {key: found[key] for key in before} == before


@pytest.mark.parametrize("presets", ["beit,imagenet,vit-base", "cae,stl10,vit-small", "quick,cifar10"])
def test_their_order_does_not_matter(presets: str, tmp_path: Path) -> None:
    wanted = loaded(presets)
    for names in itertools.permutations(presets.split(",")):
        assert loaded(*names) == wanted
        assert loaded(" , ".join(names)) == wanted
    first, *others = presets.split(",")
    assert loaded(first, ",".join(others)) == wanted
    assert load(environ={"DSDMAE_PRESET": presets}) == wanted
    config = tmp_path / "mine.toml"
    config.write_text(f"preset = {json.dumps(names)}")
    assert load(config=config, environ={}) == wanted
    config.write_text(f"preset = {json.dumps(presets)}")
    assert load(config=config, environ={}) == wanted


def test_each_value_says_which_preset_it_is_from() -> None:
    sources = loaded("cae", "cifar10", "vit-tiny").sources
    assert sources["data.dataset"] == "preset cifar10"
    assert sources["backbone.name"] == "preset vit-tiny"
    assert sources["backbone.layer_scale"] == "preset cae"
    assert sources["optim.base_lr"] == "preset cae"


def test_a_method_by_flag_keeps_the_rest_of_its_presets() -> None:
    flagged = loaded("dsdmae,cifar10,vit-tiny", flags={"method.name": "mae"})
    assert flagged.settings == loaded("mae,cifar10,vit-tiny").settings
    by_flag = loaded("cae,cifar10", flags={"backbone.name": "vit-small"}).settings
    assert by_flag == loaded("cae,cifar10,vit-small").settings


@pytest.mark.parametrize(
    ("presets", "says"),
    [
        (("cifar10", "stl10"), "presets cifar10 and stl10 (from --preset) are both a dataset; give one of them"),
        (("mae,sdae",), "presets mae and sdae (from --preset) are both a method; give one of them"),
        (("quick", "denoiser"), "are both a recipe"),
        (("mae", "cifra10"), "unknown preset 'cifra10' (from --preset) (did you mean cifar10?)"),
        (("mae,",), "unknown preset ''"),
        (("paper",), "unknown preset 'paper'"),
    ],
)
def test_what_does_not_go_together_is_refused(presets: tuple[str, ...], says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        loaded(*presets)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_same_preset_twice_is_once() -> None:
    assert loaded("mae", "mae") == loaded("mae")


def test_what_presets_there_are() -> None:
    assert presets_by_kind() == {
        "recipes": ["denoiser", "quick", "quick-ablate", "tokenizer", "tokenizer-quick"],
        "datasets": ["cifar10", "cifar100", "imagenet", "stl10"],
        "sizes": ["vit-base", "vit-giant", "vit-huge", "vit-large", "vit-small", "vit-tiny"],
        "methods": list(METHODS),
    }
    assert presets_by_kind(FINETUNE) == {"recipes": ["paper", "segment", "strong"], "datasets": ["imagenet", "stl10"]}


@pytest.mark.parametrize("schema", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_a_preset_names_others_that_there_are(schema: Schema[Any]) -> None:
    names = preset_names(schema)
    assert len(set(names)) == len(names)
    for kind, of_kind in presets_by_kind(schema).items():
        for name in of_kind:
            found = read_preset(schema, kind, name)
            beside = found.get("with", {})
            own = {found["data"]["dataset"]} if "dataset" in found.get("data", {}) else set()
            assert beside.keys() <= (set(names) - set(of_kind)) | own
            assert all(table.keys() <= set(schema.sections) for table in beside.values())


@pytest.mark.parametrize(("kind", "key"), [("datasets", "data.dataset"), ("sizes", "backbone.name"),
                                           ("methods", "method.name"), ("recipes", "method.name"),
                                           ("recipes", "backbone.name")])  # fmt: skip
def test_a_preset_names_its_plugin(kind: str, key: str) -> None:
    # Else another default would change what a preset means.
    assert kind in KINDS
    section, _, name = key.partition(".")
    assert section in SECTIONS
    for preset in presets_by_kind()[kind]:
        found = loaded(preset)
        assert found.sources[key] == f"preset {preset}"
        value = getattr(getattr(found.settings, section), name)
        plugin: plugins.Kind = {"data": "dataset"}.get(section, section)  # type: ignore[assignment]
        assert plugins.find(plugin, value).distribution == "dsdmae"


@pytest.mark.parametrize("presets", PAPER)
def test_dsdmaes_are_the_papers_table_1(presets: str) -> None:
    """Row for row: https://doi.org/10.5815/ijigsp.2023.05.03, Table 1, and section IV.A for the grid."""
    _, dataset, architecture = presets.split(",")
    width, heads = {"vit-tiny": (192, 3), "vit-small": (384, 6), "vit-base": (768, 12)}[architecture]
    batch = 1024 if architecture == "vit-base" else 2048
    size, patch = (96, 6) if dataset == "stl10" else (32, 2)

    found = resolve(loaded(presets).settings)
    data, backbone, method, optim, train = tables(found).values()
    assert (data["dataset"], data["image_size"]) == (dataset, size)
    assert data.get("stl10_split", "unlabeled") == "unlabeled"
    assert backbone["name"] == architecture
    assert (backbone["embed_dim"], backbone["depth"], backbone["num_heads"]) == (width, 12, heads)
    assert backbone["mlp_ratio"] == 4
    assert backbone["patch_size"] == patch
    assert (size // patch) ** 2 == 256
    assert train["batch_size"] == batch
    assert isinstance(found.optim, OptimSettings)  # AdamW is the only optimiser
    assert optim["betas"] == [0.9, 0.95]
    assert optim["weight_decay"] == 0.05
    assert optim["base_lr"] == 1.5e-4
    assert optim["lr"] == pytest.approx(1.5e-4 * batch / 256)
    assert optim["min_lr"] == 0
    assert optim["warmup_epochs"] == pytest.approx(20)
    assert train["epochs"] == 500
    assert method["name"] == "dsdmae"
    assert method["ema_momentum"] == [0.96, 0.99]
    assert (method["decoder_depth"], method["regressor_depth"]) == (4, 2)


def test_the_peak_rate_of_table_1() -> None:
    assert resolve(loaded("dsdmae,cifar10,vit-tiny").settings).optim.lr == pytest.approx(1.2e-3)
    assert resolve(loaded("dsdmae,stl10,vit-base").settings).optim.lr == pytest.approx(6e-4)


def test_maes_imagenet_is_its_public_code() -> None:
    """facebookresearch/mae, PRETRAIN.md and models_mae.py: 800 epochs, decoder of 8 blocks, 512 wide, 16 heads."""
    found = resolve(loaded("mae", "imagenet", "vit-base").settings)
    assert found.backbone.class_token
    method = found.method
    assert (method.mask_ratio, method.norm_pix_loss) == (0.75, True)
    assert (method.decoder_depth, method.decoder_dim, method.decoder_heads) == (8, 512, 16)
    assert (found.train.epochs, found.train.batch_size, found.optim.warmup_epochs) == (800, 4096, 40)
    assert found.optim.lr == pytest.approx(1.5e-4 * 4096 / 256)
    assert (found.optim.betas, found.optim.weight_decay) == ((0.9, 0.95), 0.05)
    assert found.data.crop_scale == (0.2, 1.0)

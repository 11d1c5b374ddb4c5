"""What the built-in datasets declare about themselves. No torch here; each spec names the module at work."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from dsdmae_cli.plugins import DatasetSpec
from dsdmae_cli.settings.judge import one_or_more
from dsdmae_cli.settings.models import DataSettings

ByteValue = Annotated[int, Field(ge=0, le=255)]


class Stl10Settings(DataSettings):
    """STL-10 has 100,000 images without labels and 5,000 with; which of them are learned from."""

    stl10_split: Literal["unlabeled", "train+unlabeled", "train"] = Field(
        "unlabeled", description="images to pre-train on; labelled evaluation always uses the labelled ones"
    )


class FolderSettings(DataSettings):
    """Images of one's own: what folders and a table say of them."""

    splits: str = Field(
        "auto",
        description="which two folders, or tar shards of such names, hold the training and the test images: auto = by"
        " their names (train; test, val and their like), or by a column of data.labels that is called split;"
        " none = none is a split; TRAIN,TEST = these two",
    )
    labels: Path | None = Field(
        None, description="CSV file with a file name and a label a row, in place of what folders say; none = folders"
    )
    label_columns: str | None = Field(
        None,
        description="columns of data.labels as FILE,LABEL, by heading or number from 1 up; none = guessed, and said",
    )

    void: Annotated[tuple[ByteValue, ...], BeforeValidator(one_or_more)] = Field(
        (255,),
        description="values in the masks of a folder with images/ and masks/ that nobody judges; a line void in"
        " classes.txt says so too",
    )
    without_mask: Literal["refuse", "skip"] = Field(
        "refuse", description="images without a mask, in segmentation: an error, or left out"
    )


class ParquetSettings(DataSettings):
    """Images in a column of Parquet files."""

    image_column: str | None = Field(
        None,
        description="column that holds the images: bytes, structs with bytes, or paths of files beside the table;"
        " none = guessed, and said",
    )
    label_column: str | None = Field(
        None, description="column that holds the labels, numbers or words; none = guessed by its name, and said"
    )
    splits: str = Field(
        "auto",
        description="which rows are the training and the test images: auto = by a column that is called split, or the"
        " names of files and folders; none = all rows are one set; TRAIN,TEST = what that column, or folders, say",
    )


CIFAR10 = DatasetSpec(
    summary="CIFAR-10: 50,000 + 10,000 photographs of 32x32 in 10 classes (downloaded, 170 MB)",
    build="dsdmae_builtin.torchvision_datasets:build_cifar10",
    image_size=32,
    num_images={"train": 50_000, "test": 10_000},
)

CIFAR100 = DatasetSpec(
    summary="CIFAR-100: 50,000 + 10,000 photographs of 32x32 in 100 classes (downloaded, 169 MB)",
    build="dsdmae_builtin.torchvision_datasets:build_cifar100",
    image_size=32,
    num_images={"train": 50_000, "test": 10_000},
)

STL10 = DatasetSpec(
    summary="STL-10: 100,000 unlabelled photographs of 96x96, 5,000 + 8,000 labelled (downloaded, 2.6 GB)",
    build="dsdmae_builtin.torchvision_datasets:build_stl10",
    settings=Stl10Settings,
    image_size=96,
    labelled_split="labelled",
    num_images={"train": 100_000, "labelled": 5_000, "test": 8_000},
)

IMAGENET = DatasetSpec(
    summary="ImageNet-1k: 1.28 million + 50,000 photographs in 1,000 classes (you fetch the archives)",
    build="dsdmae_builtin.torchvision_datasets:build_imagenet",
    image_size=224,
)

DIGITS = DatasetSpec(
    summary="scikit-learn's handwritten digits: 1,400 + 397 of 8x8, enlarged to 16x16 (no download)",
    build="dsdmae_builtin.digits:build",
    image_size=16,
    augment={"crop_scale": None, "flip": False, "shift": 1},
)

FOLDER = DatasetSpec(
    summary="your own images, with masks too: a folder, .tar shards, or a .tar, .tar.gz, .tar.xz or .zip",
    build="dsdmae_builtin.folder:build",
    settings=FolderSettings,
    argument="PATH",
    reads_paths=True,
    count="dsdmae_builtin.folder:count",
    image_size="dsdmae_builtin.folder:native_size",
    channels="dsdmae_builtin.folder:channels",
    value_range="dsdmae_builtin.folder:value_range",
)

IDX = DatasetSpec(
    summary="a folder of IDX files: MNIST, Fashion-MNIST and others of their form",
    build="dsdmae_builtin.idx:build",
    argument="PATH",
    image_size="dsdmae_builtin.idx:native_size",
)

PARQUET = DatasetSpec(
    summary="images in a column of Parquet files: a file, a folder of them, or a glob",
    build="dsdmae_builtin.parquet:build",
    settings=ParquetSettings,
    argument="PATH",
    count="dsdmae_builtin.parquet:count",
    image_size="dsdmae_builtin.parquet:native_size",
    value_range="dsdmae_builtin.parquet:value_range",
)

PACKED = DatasetSpec(
    summary="a folder that `dsdmae data pack` made: images ready for training, in checked shards",
    build="dsdmae_builtin.packed:build",
    argument="PATH",
    marker="packed.json",
    count="dsdmae_builtin.packed:count",
    image_size="dsdmae_builtin.packed:native_size",
    channels="dsdmae_builtin.packed:channels",
    value_range="dsdmae_builtin.packed:value_range",
)

VOC = DatasetSpec(
    summary="Pascal VOC's segmentation: 1,464 + 1,449 photographs with masks of 20 classes (you fetch it)",
    build="dsdmae_builtin.masks:build_voc",
    argument="PATH",
    image_size=224,
)

COCO_STUFF = DatasetSpec(
    summary="COCO-Stuff: 118,000 + 5,000 photographs with masks of 171 classes (you fetch it)",
    build="dsdmae_builtin.masks:build_coco_stuff",
    argument="PATH",
    image_size=224,
)

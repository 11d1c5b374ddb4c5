"""What the dataset declares about itself. Neither torch nor the datasets library is imported here."""

from pydantic import Field

from dsdmae_cli.plugins import DatasetSpec
from dsdmae_cli.settings.models import DataSettings


class HFSettings(DataSettings):
    """A dataset of Hugging Face's datasets library."""

    hf_config: str | None = Field(None, description="configuration, where the dataset has several")
    hf_splits: str | None = Field(
        None, description="splits to learn from and to test on, as TRAIN,TEST; none = by their names"
    )
    image_column: str | None = Field(None, description="column that holds the images; none = the only one of images")
    label_column: str | None = Field(
        None, description="column that holds the labels; none = the only ClassLabel, or one that is called so"
    )


HF = DatasetSpec(
    summary="image datasets of Hugging Face's datasets library: a name on the Hub, or a folder of save_to_disk",
    build="dsdmae_hf.rows:build",
    settings=HFSettings,
    argument="NAME",
    count="dsdmae_hf.rows:count",
    image_size="dsdmae_hf.rows:native_size",
    value_range="dsdmae_hf.rows:value_range",
)

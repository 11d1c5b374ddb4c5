"""The backbones, datasets and methods that come with dsdmae, found through entry points like anyone's."""

"""The backbones, datasets, methods and probes that come with dsdmae, found through entry points like anyone's."""

"""Labels of pixels: probing frozen patches and fine-tuning for segmentation, below the commands that also do images."""

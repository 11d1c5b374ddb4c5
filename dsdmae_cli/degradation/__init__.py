"""What happens to a photograph on its way to a file: the sensor's noise, demosaicing, resizing, JPEG.

Pure functions of tensors and a generator, as corruption.py; a draw of its own for each image, on the images' device.
`photographs.degrade` puts them together.
"""

"""Pages: one HTML file that opens offline, for a run, an ablation, an answer of `worth`, pictures that were denoised.

chart     lines and points as SVG
ticks     where an axis has its numbers
blocks    what a page is made of
document  blocks as HTML: the shell, light and dark, escaped, without paths of the machine
thumbs    pictures inside a page, bounded
curves    a run's figures as charts, thinned as they come
run       the page of a run
"""

PAGE = "report.html"  # the name of every page, in the folder that it is about
